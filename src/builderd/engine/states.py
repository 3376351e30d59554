"""A backup of the service's state: a folder that is renamed into place once it is complete.

manifest.json      format and time, and the sha256 and size of every other file
database.sqlite    the database, also if the service uses PostgreSQL
bundles/           the files of versions, by hash
keys.sealed        the keys, sealed with a passphrase; missing if none was given
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from builderd.core.errors import InvalidState
from builderd.linux import atomic_files
from builderd.linux.atomic_files import from_stored

FORMAT = 1
MANIFEST, DATABASE, BUNDLES, KEYS = "manifest.json", "database.sqlite", "bundles", "keys.sealed"


@dataclass(frozen=True, slots=True)
class Manifest:
    """The content of ``manifest.json``."""

    #: RFC 3339.
    created_at: str
    #: Version of builderd.
    builderd: str
    #: Revision of the database's schema.
    revision: str
    #: Identity of the service instance.
    identity: str
    #: By path: (sha256, bytes).
    files: Mapping[str, tuple[str, int]]
    format: int = FORMAT


@contextmanager
def create(target: Path) -> Iterator[Path]:
    """Yield an empty folder beside the target, and rename it to the target if the block succeeds.

    Raises ``InvalidState`` if the target is not empty, or is a mount point: the folder would be on another disk.
    """
    target = target.resolve()
    if target.is_mount():
        raise InvalidState(f"{target} is a mount point: name a folder below it, such as {target / 'builderd'}.")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise InvalidState(f"{target} is not empty: name a folder that does not exist.")
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.parent / f".{target.name}.unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(mode=0o700)
    try:
        yield unfinished
        unfinished.rename(target)
        atomic_files.sync(target.parent)
    except OSError as error:
        if error.filename is None:  # a failed write names no file, as when the disk is full
            error.filename = str(target)
        raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def write_manifest(folder: Path, created_at: str, program: str, revision: str, identity: str) -> Manifest:
    """List all files of the folder in its manifest. Everything is synced to the disk on return."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    files = {str(path.relative_to(folder)): _measure(path) for path in paths}
    manifest = Manifest(created_at, program, revision, identity, files)
    atomic_files.write(folder / MANIFEST, json.dumps(asdict(manifest), indent=1).encode())
    for subfolder in (*(path for path in folder.rglob("*") if path.is_dir()), folder):
        atomic_files.sync(subfolder)
    return manifest


def check(folder: Path) -> Manifest:
    """Compare every file with the manifest. Raises ``InvalidState`` with the first that is missing or differs."""
    manifest = read(folder)
    for name, recorded in manifest.files.items():
        path = folder / name
        if ".." in Path(name).parts or Path(name).is_absolute() or path.is_symlink() or not path.is_file():
            raise InvalidState(f"{path} is missing: this backup is incomplete.")
        if _measure(path) != tuple(recorded):
            raise InvalidState(f"{path} is damaged: it differs from the manifest of the backup.")
    return manifest


def read(folder: Path) -> Manifest:
    """Read the manifest. Raises ``InvalidState`` for a folder that is no backup, or has a newer format."""
    try:
        found = json.loads((folder / MANIFEST).read_text())
        if found["format"] != FORMAT:
            raise InvalidState(
                f"{folder} has format {found['format']}: a newer builderd made it; format {FORMAT} is read."
            )
        return from_stored(Manifest, found)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InvalidState(f"{folder} is no complete backup: {error}.") from None


def copy_to(folder: Path, manifest: Manifest, staging: Path) -> None:
    """Copy the backup to a staging folder, synced to the disk, and check the copy."""
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(mode=0o700)
    for name in (*manifest.files, MANIFEST):
        copy = staging / name
        copy.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        atomic_files.copy(folder / name, copy)
    check(staging)
    for subfolder in (*(path for path in staging.rglob("*") if path.is_dir()), staging, staging.parent):
        atomic_files.sync(subfolder)


def _measure(path: Path) -> tuple[str, int]:
    """Return (sha256, bytes)."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest(), path.stat().st_size
