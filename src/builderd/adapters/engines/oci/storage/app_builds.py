"""Files of a version's build: placed before it, and reduced to its result after it.

A build's folder ``app`` holds the version's files, and ``node_modules`` as a mount point. The build may leave anything
in there: links are kept as links and never followed, pipes and sockets are removed, and the folder is only read after
the last process of the build has ended.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path

from builderd.adapters.engines.oci.storage.placement import write_files
from builderd.adapters.engines.oci.storage.subvolumes import ROOT_INODE
from builderd.domain.bundles import Bundle, BundleFile, path_error
from builderd.domain.layers import NODE_MODULES, AppBuild

#: Folder of a build's layer with the files that it made, as they lie below the app's folder.
FOLDER = "app"
#: Files and links that one build may make.
MAX_FILES = 100_000
#: Folders within each other that a build may make.
MAX_DEPTH = 100
_CHUNK = 1 << 20


class BuildRefused(Exception):
    """A build left what cannot be kept; the message says what."""


def place_files(layer: Path, build: AppBuild, owner: int) -> None:
    """Write the version's files into the layer's folder ``app``, with a mount point for its packages."""
    app = layer / FOLDER
    app.mkdir(mode=0o755)
    os.chown(app, owner, owner)
    write_files(build.bundle.files, (), app, owner)
    if not has_own_packages(build):
        (app / build.root / NODE_MODULES).mkdir(mode=0o755)


def has_own_packages(build: AppBuild) -> bool:
    """Return True if the version brings its ``node_modules``, so that none is mounted there."""
    own = f"{build.root}/{NODE_MODULES}" if build.root else NODE_MODULES
    return any(file.path == own or file.path.startswith(f"{own}/") for file in build.bundle.files)


def keep_result(layer: Path, bundle: Bundle) -> None:
    """Remove from the layer what the build did not make. Raises ``BuildRefused``."""
    app, known = layer / FOLDER, {file.path: file for file in bundle.files}
    if not stat.S_ISDIR(app.lstat().st_mode):
        raise BuildRefused("the build replaced /app")
    for count, (path, status) in enumerate(_walk(app), 1):
        if count > MAX_FILES:
            raise BuildRefused(f"the build made more than {MAX_FILES} files")
        if not _is_kept(status) or _is_unchanged(app / path, status, known.get(path)):
            (app / path).unlink()


def _is_kept(status: os.stat_result) -> bool:
    return stat.S_ISREG(status.st_mode) or stat.S_ISLNK(status.st_mode)


def result_paths(folder: Path) -> Mapping[str, os.stat_result]:
    """Return the files and links that a build made, by their paths below ``folder``. Raises ``BuildRefused``."""
    return dict(_walk(folder))


def _walk(top: Path) -> Iterator[tuple[str, os.stat_result]]:
    """Yield path and status of all that is no folder. A list of each folder is made before its entries change."""
    folders = [""]
    while folders:
        folder = folders.pop()
        with os.scandir(top / folder) as entries:
            found = [(entry.name, entry.stat(follow_symlinks=False)) for entry in entries]
        for name, status in found:
            path = f"{folder}/{name}" if folder else name
            _check(path, status)
            if stat.S_ISDIR(status.st_mode):
                folders.append(path)
            else:
                yield path, status


def _check(path: str, status: os.stat_result) -> None:
    shown = os.fsencode(path).decode(errors="replace")[:200]
    if error := path_error(path):
        raise BuildRefused(f"the build made {shown!r}: a path {error}")
    if path.count("/") > MAX_DEPTH:
        raise BuildRefused(f"the build made folders more than {MAX_DEPTH} deep: {shown}")
    if stat.S_ISDIR(status.st_mode) and status.st_ino == ROOT_INODE:
        raise BuildRefused(f"the build made a subvolume: {shown}")


def _is_unchanged(path: Path, status: os.stat_result, file: BundleFile | None) -> bool:
    if file is None or not stat.S_ISREG(status.st_mode) or status.st_size != file.size:
        return False
    if bool(status.st_mode & 0o100) is not file.executable:
        return False
    with path.open("rb") as made:
        return all(made.read(len(chunk)) == chunk for chunk in file.chunks())
