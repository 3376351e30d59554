"""Files are copied whole and never out of a folder, and changed on disks that are full or fed meanwhile."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import cast

import pytest

from builderd.code.model import Bundle, BundleFile, make_bundle
from builderd.core.errors import TooLarge
from builderd.core.ids import DiskId
from builderd.engine.oci.storage import tree
from builderd.engine.oci.storage.disks import Disks
from builderd.engine.oci.storage.files import Files
from builderd.engine.oci.storage.tree import HOME_IN_BACKUP as HOME
from builderd.engine.oci.storage.tree import UNFINISHED, write_files
from builderd.files.model import UNCONDITIONAL, FileEntry

NEW = b"new"


@pytest.fixture
def app(tmp_path: Path) -> Path:
    folder = tmp_path / "app"
    folder.mkdir()
    return folder


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """Make a folder with a file that must not change."""
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "file").write_text("secret")
    return folder


def bundle(*paths: str, executable: bool = False) -> Bundle:
    return make_bundle([BundleFile(path, NEW, executable) for path in paths])


def put(bundle: Bundle, app: Path) -> None:
    write_files(bundle.files, (), app, os.getuid())


def untouched(outside: Path) -> bool:
    return [path.name for path in outside.iterdir()] == ["file"] and (outside / "file").read_text() == "secret"


def test_files_and_folders_are_made(app: Path) -> None:
    put(bundle("main.py", "a/b/c.txt", "a/d.txt"), app)
    assert (app / "a/b/c.txt").read_bytes() == NEW
    assert (app / "main.py").stat().st_mode & 0o777 == 0o644
    assert (app / "a").stat().st_mode & 0o777 == 0o755
    assert sorted(path.name for path in app.rglob("*")) == ["a", "b", "c.txt", "d.txt", "main.py"]


def test_placing_again_replaces_files_and_leaves_others_alone(app: Path) -> None:
    put(bundle("main.py"), app)
    (app / "main.py").write_text("changed by the app")
    (app / "data.db").write_text("the app's")
    put(bundle("main.py"), app)
    assert (app / "main.py").read_bytes() == NEW
    assert (app / "data.db").read_text() == "the app's"


def test_a_link_in_the_place_of_a_file_is_replaced_and_not_followed(app: Path, outside: Path) -> None:
    (app / "main.py").symlink_to(outside / "file")
    put(bundle("main.py"), app)
    assert not (app / "main.py").is_symlink()
    assert (app / "main.py").read_bytes() == NEW
    assert untouched(outside)


@pytest.mark.parametrize("target", ["..", "../outside", "/", "nowhere", "a"])
def test_no_kind_of_link_leads_anywhere(app: Path, outside: Path, target: str) -> None:
    (app / "a").symlink_to(target)
    put(bundle("a/b/file"), app)
    assert (app / "a/b/file").read_bytes() == NEW
    assert untouched(outside)


def test_the_folder_itself_must_not_be_a_link(app: Path, outside: Path) -> None:
    app.rmdir()
    app.symlink_to(outside)
    with pytest.raises(OSError, match="Not a directory"):
        put(bundle("file"), app)
    assert untouched(outside)


def test_a_hard_link_to_a_file_outside_is_cut(app: Path, outside: Path) -> None:
    os.link(outside / "file", app / "main.py")
    put(bundle("main.py"), app)
    assert untouched(outside)


def test_a_pipe_that_would_block_its_writer_is_replaced(app: Path) -> None:
    os.mkfifo(app / "main.py")
    put(bundle("main.py"), app)
    assert (app / "main.py").read_bytes() == NEW


def test_a_link_under_the_name_of_unfinished_files_is_not_written_through(app: Path, outside: Path) -> None:
    (app / UNFINISHED).symlink_to(outside / "file")
    put(bundle("main.py"), app)
    assert untouched(outside)
    assert [path.name for path in app.iterdir()] == ["main.py"]


def test_a_full_folder_under_the_name_of_unfinished_files_is_moved_aside(app: Path) -> None:
    (app / UNFINISHED / "x").mkdir(parents=True)
    put(bundle("main.py"), app)
    assert (app / "main.py").read_bytes() == NEW
    assert (app / f"{UNFINISHED}.~1~/x").is_dir()


def test_a_file_in_the_place_of_a_folder_gives_way(app: Path) -> None:
    (app / "a").write_text("a file")
    put(bundle("a/b"), app)
    assert (app / "a/b").read_bytes() == NEW


def test_an_empty_folder_in_the_place_of_a_file_gives_way(app: Path) -> None:
    (app / "a").mkdir()
    put(bundle("a"), app)
    assert [path.name for path in app.iterdir()] == ["a"]


def test_a_folder_with_data_in_the_place_of_a_file_is_moved_aside_each_time(app: Path) -> None:
    for n in (1, 2):
        (app / "a").unlink(missing_ok=True)
        (app / "a").mkdir()
        (app / "a/data").write_text(f"data {n}")
        put(bundle("a"), app)
    assert (app / "a").read_bytes() == NEW
    assert [(app / f"a.~{n}~/data").read_text() for n in (1, 2)] == ["data 1", "data 2"]


def test_a_folder_with_the_longest_name_can_be_moved_aside(app: Path) -> None:
    name = "ü" * 127
    (app / name / "x").mkdir(parents=True)
    put(bundle(name), app)
    assert (app / name).read_bytes() == NEW


@pytest.mark.parametrize("path", ["../x", "a/../../x", "/x", "a//b", "."])
def test_a_path_that_should_not_have_come_this_far_is_refused_before_anything_is_written(app: Path, path: str) -> None:
    with pytest.raises(ValueError, match="must"):
        put(bundle("a", path), app)
    assert list(app.iterdir()) == []
    assert not (app.parent / "x").exists()


Tree = Mapping[str, str]

#: Files of the app, by a name of the case. A value that begins with -> is the target of a link.
APPS: Mapping[str, Tree] = {
    "nothing of these names": {"main.py": "1"},
    "a file": {HOME: "1"},
    "a folder": {f"{HOME}/a": "1"},
    "a link": {HOME: "->/etc"},
    "the second name": {f"{HOME}-1/a": "1"},
    "a later name, as a link": {HOME: "1", f"{HOME}-7": "->home"},
    "a number of another writing": {f"{HOME}-0/a": "1", f"{HOME}-01/a": "2"},
    "no number of these": {f"{HOME}--1/a": "1", f"{HOME}-{'9' * 200}/a": "2"},
    "what a backup looks like": {f"{HOME}/{HOME}/a": "1", f"{HOME}-1/{HOME}-1/b": "2"},
}


def make_disk(path: Path, files: Tree, home: Tree) -> Path:
    for folder, content in (("app", files), ("home", home)):
        (path / folder).mkdir(parents=True)
        for name, text in content.items():
            file = path / folder / name
            file.parent.mkdir(parents=True, exist_ok=True)
            if text.startswith("->"):
                file.symlink_to(text.removeprefix("->"))
            else:
                file.write_text(text)
    return path


def content_of(folder: Path) -> Tree:
    return {
        str(path.relative_to(folder)): f"->{path.readlink()}" if path.is_symlink() else path.read_text()
        for path in sorted(folder.rglob("*"))
        if path.is_symlink() or path.is_file()
    }


def restored(disk: Path, backup: Path) -> Path:
    """Return a new disk with the files of the backup."""
    (disk / "home").mkdir(parents=True)
    shutil.copytree(backup / "app", disk / "app", symlinks=True)
    return disk


@pytest.mark.parametrize("name", APPS)
@pytest.mark.parametrize("home", [{"notes": "mine", f"{HOME}/x": "y"}, {}], ids=["home", "empty home"])
def test_home_and_files_come_back_from_a_backup_whatever_they_are_called(tmp_path: Path, name: str, home: Tree) -> None:
    copy = make_disk(tmp_path / "copy", APPS[name], home)
    tree.put_home_in(copy)
    before = content_of(copy / "app")
    tree.put_home_in(copy)
    assert content_of(copy / "app") == before
    disk = restored(tmp_path / "disk", copy)
    tree.take_home_out(disk)
    if home:
        tree.take_home_out(disk)
    assert (content_of(disk / "app"), content_of(disk / "home")) == (APPS[name], home)
    assert sorted(path.name for path in disk.iterdir()) == ["app", "home"]


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
