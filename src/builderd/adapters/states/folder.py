"""A backup of the service's state: a folder that appears all at once, and tells of each of its files what it holds.

manifest.json      what it is, and the sha256 and size of every other file
database.sqlite    the database, whichever kind it was of
bundles/           the files of versions, by their hash
keys.sealed        the keys, sealed with a passphrase; not there where none was given
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from builderd import durable
from builderd.domain.errors import InvalidState

FORMAT = 1
MANIFEST, DATABASE, BUNDLES, KEYS = "manifest.json", "database.sqlite", "bundles", "keys.sealed"


@dataclass(frozen=True, slots=True)
class Manifest:
    """``created_at`` in RFC 3339, ``revision`` of the database's schema, ``files`` by path: (sha256, bytes)."""

    created_at: str
    builderd: str
    revision: str
    identity: str
    files: Mapping[str, tuple[str, int]]
    format: int = FORMAT


@contextmanager
def making(target: Path) -> Iterator[Path]:
    """Where to put it; at the end it gets its name. Raises ``InvalidState`` unless the target is empty or missing.

    It is made beside the target, which must not be where something is mounted: it would lie on another disk.
    """
    target = target.resolve()
    if target.is_mount():
        raise InvalidState(f"{target} is where a disk is mounted: name a folder on it, such as {target / 'builderd'}.")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise InvalidState(f"{target} is not empty: name a folder that is not there yet.")
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.parent / f".{target.name}.unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(mode=0o700)
    try:
        yield unfinished
        unfinished.rename(target)
        durable.sync(target.parent)
    except OSError as error:
        if error.filename is None:  # a write does not tell: the disk is full
            error.filename = str(target)
        raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def finish(folder: Path, created_at: str, program: str, revision: str, identity: str) -> Manifest:
    """Write down what is in it. Everything is on the disk when this returns."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    files = {str(path.relative_to(folder)): _measure(path) for path in paths}
    manifest = Manifest(created_at, program, revision, identity, files)
    durable.write(folder / MANIFEST, json.dumps(asdict(manifest), indent=1).encode())
    for inside in (*(path for path in folder.rglob("*") if path.is_dir()), folder):
        durable.sync(inside)
    return manifest


def check(folder: Path) -> Manifest:
    """Read every file of it. Raises ``InvalidState`` that names what is missing, differs or is none of it."""
    manifest = read(folder)
    for name, known in manifest.files.items():
        path = folder / name
        if ".." in Path(name).parts or Path(name).is_absolute() or path.is_symlink() or not path.is_file():
            raise InvalidState(f"{path} is missing: this backup is not complete.")
        if _measure(path) != tuple(known):
            raise InvalidState(f"{path} is not what it was when the backup was made: it is damaged.")
    return manifest


def read(folder: Path) -> Manifest:
    """What it says of itself. Raises ``InvalidState`` when it is no backup, or one of a newer format."""
    try:
        found = json.loads((folder / MANIFEST).read_text())
        if found["format"] != FORMAT:
            raise InvalidState(f"{folder} has the format {found['format']}: a newer builderd made it.")
        return Manifest(**found)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InvalidState(f"{folder} is no backup that was finished: {error}.") from None


def stage(folder: Path, manifest: Manifest, staging: Path) -> None:
    """Copy it, and compare once more what was copied."""
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(mode=0o700)
    for name in (*manifest.files, MANIFEST):
        copy = staging / name
        copy.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        durable.copy(folder / name, copy)
    check(staging)
    for inside in (*(path for path in staging.rglob("*") if path.is_dir()), staging, staging.parent):
        durable.sync(inside)


def _measure(path: Path) -> tuple[str, int]:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest(), path.stat().st_size
