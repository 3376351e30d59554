"""The files on disks that are full, are fed while they are deleted, or have times which no calendar has."""

from __future__ import annotations

import errno
import os
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import cast

import pytest

from builderd.core.errors import TooLarge
from builderd.core.ids import DiskId
from builderd.engine.oci.storage import files, tree
from builderd.engine.oci.storage.disks import Disks
from builderd.engine.oci.storage.files import Files
from builderd.files.model import UNCONDITIONAL, FileEntry

DISK = DiskId("disk")


class FullDisks:
    """One disk, on which nothing more can be made."""

    def __init__(self, app: Path) -> None:
        self._app = app

    def app(self, disk: DiskId) -> Path:
        return self._app

    def trash(self, disk: DiskId) -> Path:
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    def limit(self, disk: DiskId) -> int:
        return 1 << 30

    def is_stopped_by_store(self, disk: DiskId) -> bool:
        return False

    delete_needs_space = Disks.delete_needs_space


@pytest.fixture
async def full(tmp_path: Path) -> AsyncIterator[Files]:
    made = Files(cast("Disks", FullDisks(tmp_path)))
    yield made
    made.close()


class Disk(FullDisks):
    """One with room, whose trash nobody empties in the background."""

    def __init__(self, path: Path) -> None:
        super().__init__(path / "app")
        self._trash = path / "trash"
        self.left: list[DiskId] = []
        for folder in (self._app, self._trash):
            folder.mkdir()

    def trash(self, disk: DiskId) -> Path:
        return self._trash

    def empty_trash(self, disk: DiskId) -> None:
        self.left.append(disk)


@pytest.mark.parametrize("recursive", [False, True])
async def test_a_file_that_becomes_a_folder_while_it_is_deleted_goes_as_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recursive: bool
) -> None:
    disk = Disk(tmp_path)
    made = Files(cast("Disks", disk))
    path = disk.app(DISK) / "it"
    path.touch()
    seen = tree.stat_entry

    def look(folder: int, name: str) -> FileEntry | None:
        entry = seen(folder, name)
        path.unlink()
        path.mkdir()
        return entry

    monkeypatch.setattr(tree, "stat_entry", look)
    await made.delete_file(DISK, "it", UNCONDITIONAL, recursive=recursive)
    made.close()
    assert not path.exists()


@pytest.mark.parametrize(
    ("limit", "left"), [(None, 0), ("CLEAR_SECONDS", 3), ("CLEARINGS", 3)], ids=["all", "no time", "no thread"]
)
async def test_slow_delete_continues_in_the_background(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str | None, left: int
) -> None:
    if limit:
        monkeypatch.setattr(files, limit, 0)
    disk = Disk(tmp_path)
    made = Files(cast("Disks", disk))
    folder = disk.app(DISK) / "folder"
    folder.mkdir()
    for number in range(3):
        (folder / f"{number}").touch()
    await made.delete_file(DISK, "folder", UNCONDITIONAL, recursive=True)
    made.close()
    assert not folder.exists()
    assert disk.left == ([DISK] if left else [])
    assert len(list(disk.trash(DISK).glob("*/*"))) == left


async def test_single_files_and_empty_folders_are_deleted_from_a_full_disk(full: Files, tmp_path: Path) -> None:
    for name in ("file", "other"):
        (tmp_path / name).write_text("x")
    (tmp_path / "empty").mkdir()
    await full.delete_file(DISK, "file", UNCONDITIONAL, recursive=False)
    await full.delete_file(DISK, "other", UNCONDITIONAL, recursive=True)
    await full.delete_file(DISK, "empty", UNCONDITIONAL, recursive=False)
    assert list(tmp_path.iterdir()) == []


async def test_a_folder_that_a_full_disk_has_no_room_to_delete_says_what_to_do(full: Files, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/file").write_text("x")
    with pytest.raises(TooLarge, match=r"disk of 1 GB is full.*single files first"):
        await full.delete_file(DISK, "folder", UNCONDITIONAL, recursive=True)
    assert (tmp_path / "folder/file").exists()


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (10**12, datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)),
        (-(10**12), datetime(1, 1, 1, tzinfo=UTC)),
        (-1, datetime(1969, 12, 31, 23, 59, 59, tzinfo=UTC)),
    ],
)
def test_a_time_outside_of_the_calendar_is_shown_as_its_end(tmp_path: Path, seconds: int, shown: datetime) -> None:
    real = tmp_path.stat()
    status = os.stat_result((*real[:8], seconds, real[9]), {"st_mtime": float(seconds), "st_ctime_ns": 0})
    assert tree.make_entry("x", status).modified_at == shown
