"""Files of builds on a disk: ``built`` beside ``app`` records which files of ``app`` came from which build.

The record is written before the files change, with the paths of both builds, and after it with those of the new one:
a put that was cut off is repeated, and finds all that may be there.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from builderd.adapters.engines.oci.storage.app_builds import result_paths
from builderd.adapters.engines.oci.storage.placement import copy_files, write_files
from builderd.domain.bundles import Bundle, BundleFile
from builderd.linux import atomic_files
from builderd.linux.small_files import read_if_there

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
    """Bring a version onto the disk: the ``change`` of its files, and the result of its build over them."""
    written, removed = change
    before, app = read_built(disk), disk / "app"
    made = result_paths(build.folder) if build else {}
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
