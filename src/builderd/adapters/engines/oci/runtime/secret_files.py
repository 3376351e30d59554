"""Secret files of an app below ``/run/credentials``: in memory on the host, readable by the app alone."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from builderd.adapters.engines.oci.storage.builds import Bind
from builderd.domain.sandboxes import SECRETS_FOLDER

TARGET = SECRETS_FOLDER
FOLDER = "credentials"


def write(bundle: Path, files: Mapping[str, str], owner: int) -> None:
    """Write them into the bundle, which lies among the run-time files. ``owner`` is the host's id of the app's user.

    Raises ``ValueError`` for a path that leads elsewhere.
    """
    top = bundle / FOLDER
    top.mkdir(mode=0o700)
    for name, text in files.items():
        file = top / relative(name)
        file.parent.mkdir(mode=0o700, exist_ok=True)
        with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o400), "w") as opened:
            opened.write(text)
    for path in (top, *top.rglob("*")):
        path.chmod(0o500 if path.is_dir() else 0o400)
        os.chown(path, owner, owner)


def make_target(upper: Path, uid: int) -> None:
    """Create their mount point in the upper layer of the sandbox's root."""
    for folder in (upper / "run", upper / TARGET.lstrip("/")):
        folder.mkdir(mode=0o755)
        os.chown(folder, uid, uid)


def bind(bundle: Path) -> Bind:
    """Return their bind mount: read-only, with the owner that they have already."""
    return Bind(bundle / FOLDER, TARGET, read_only=True, owner=None)


def relative(name: str) -> PurePosixPath:
    """Return the path below the folder; raise ``ValueError`` for one that is no ``<credential>/<variable>``."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or len(path.parts) != 2:
        raise ValueError(f"{name!r} is no <credential>/<variable>")
    return path
