"""Content of layers: the version's files placed before its build, what a build may leave, and its way onto a disk.

A build's folder ``app`` has the version's files, and ``node_modules`` as a mount point. The build may leave anything
in there: links are kept as links and never followed, pipes and sockets are removed, and the folder is only read after
the last process of the build has ended.

On a disk, ``built`` beside ``app`` records which files of ``app`` came from which build. The record is written before
the files change, with the paths of both builds, and after it with those of the new one: a put that was cut off is
repeated, and finds all that may be there.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from builderd.code.model import Bundle, BundleFile, path_error
from builderd.dependencies.model import NODE_MODULES, AppBuild
from builderd.engine.oci.storage.subvolumes import ROOT_INODE
from builderd.engine.oci.storage.tree import copy_files, write_files
from builderd.linux import atomic_files
from builderd.linux.atomic_files import read_if_there

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
        is_kept = stat.S_ISREG(status.st_mode) or stat.S_ISLNK(status.st_mode)
        if not is_kept or _is_unchanged(app / path, status, known.get(path)):
            (app / path).unlink()


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


RECORD = "built"


@dataclass(frozen=True, slots=True)
class FinishedBuild:
    """Result of a build: its key, and the folder with the files that it made."""

    key: str
    folder: Path


@dataclass(frozen=True, slots=True)
class Built:
    """Content of the record: the key of the build that is there completely, and the paths that it made."""

    key: str = ""
    paths: tuple[str, ...] = ()


def read_built(disk: Path) -> Built:
    """Return the disk's record; an empty one where no build ever was put there."""
    text = read_if_there(disk / RECORD)
    if text is None:
        return Built()
    record = json.loads(text)
    return Built(record["key"], tuple(record["paths"]))


def write_version(
    disk: Path,
    change: tuple[Sequence[BundleFile], Sequence[str]],
    bundle: Bundle,
    build: FinishedBuild | None,
    owner: int,
) -> None:
    """Bring a version onto the disk: the ``change`` of its files, and the result of its build over them.

    Raises ``BuildRefused``.
    """
    written, removed = change
    before, app = read_built(disk), disk / "app"
    made = dict(_walk(build.folder)) if build else {}
    if before.paths or build:
        _record(disk, "", {*before.paths, *made})
    stale = set(before.paths) - made.keys()
    # A file of the version that an earlier build had changed is the version's again.
    changed = {file.path for file in written}
    restored = [file for file in bundle.files if file.path in stale and file.path not in changed]
    gone = stale - {file.path for file in bundle.files}
    files = sorted((*written, *restored), key=lambda file: file.path)
    write_files(files, (*removed, *sorted(gone)), app, owner)
    if build:
        copy_files(build.folder, made, app, owner)
    if before.paths or build:
        _record(disk, build.key if build else "", made)


def _record(disk: Path, key: str, paths: Collection[str]) -> None:
    record = {"key": key, "paths": sorted(paths)}
    atomic_files.replace(disk / RECORD, json.dumps(record).encode(), mode=0o644)


#: Folders in which installers put files, as apps see them below their root.
MADE = frozenset({"venv", "node_modules"})
#: Names of unexpected files that an error lists.
NAMED = 5


def measure(layer: Path) -> int:
    """Return the bytes of a layer's files. Blocks.

    The quota counts files that were cloned from the cache of downloads for the cache alone.
    """
    argv = ("/usr/bin/du", "--summarize", "--one-file-system", "--block-size=1", str(layer))
    return int(subprocess.run(argv, check=True, stdout=subprocess.PIPE, env={"LC_ALL": "C"}).stdout.split()[0])


#: Folder of a new layer in which its steps write, beside what the layer begins with and they do not reach.
UPPER = "upper"


def take_upper(layer: Path) -> None:
    """Make what the steps wrote the layer's content; its owners become the ids of the sandbox's inside. Blocks.

    No program keeps more rights than its caller has: a change of owner takes setuid bits and capabilities away.
    """
    upper = layer / UPPER
    if first := upper.stat().st_uid:  # its root: the steps changed the root file system
        for name in ("etc/hosts", "etc/hostname"):  # the build sandbox's own
            (upper / name).unlink(missing_ok=True)
        for folder, folders, names in os.walk(upper):
            for name in (*folders, *names):
                status = os.lstat(path := f"{folder}/{name}")
                if status.st_uid >= first:  # neither the mark of a removed file, nor another name of a changed one
                    os.chown(path, status.st_uid - first, status.st_gid - first, follow_symlinks=False)
        shutil.rmtree(layer / "work")
    for entry in list(upper.iterdir()):
        entry.rename(layer / entry.name)
    upper.rmdir()


def layer_error(layer: Path) -> str | None:
    """Check what the steps made: it lies below an app's root and may contain only what installers make.

    Of a great many names only the first few are checked: to leave millions costs a build little.
    """
    with os.scandir(layer) as entries:
        others = list(islice((entry.name for entry in entries if entry.name not in MADE), NAMED))
    if others:
        names = os.fsencode(", ".join(sorted(others))).decode(errors="replace")
        return f"error: the build left {names} beside what was installed"
    made = [layer / name for name in MADE if os.path.lexists(layer / name)]
    if not made or any(path.is_symlink() or not path.is_dir() for path in made):
        return "error: the installer made nothing"
    return None
