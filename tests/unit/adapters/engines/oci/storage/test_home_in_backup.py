"""A backup has home and files whole, whatever the app has named its own; hostile names decide nothing."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import pytest

from builderd.adapters.engines.oci.storage import home_in_backup
from builderd.adapters.engines.oci.storage.home_in_backup import BOTH, HOME

Tree = Mapping[str, str]

#: Files of the app, by a name of the case. A value that begins with -> is the target of a link.
APPS: Mapping[str, Tree] = {
    "nothing of these names": {"main.py": "1"},
    "a file": {HOME: "1"},
    "a folder": {f"{HOME}/a": "1"},
    "a link": {HOME: "->/etc"},
    "the name of both, as a file": {BOTH: "1"},
    "the name of both, as a link": {BOTH: "->home"},
    "both names": {f"{HOME}/a": "1", f"{BOTH}/a": "2"},
    "what a backup looks like": {f"{BOTH}/home/evil": "1", f"{BOTH}/app/{HOME}/evil": "2", f"{BOTH}/app/{BOTH}": "3"},
    "what two backups look like": {f"{HOME}/{HOME}": "1", f"{BOTH}/app/{BOTH}/app/{BOTH}/home/a": "2"},
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
    home_in_backup.put_in(copy)
    before = content_of(copy / "app")
    home_in_backup.put_in(copy)
    assert content_of(copy / "app") == before
    disk = restored(tmp_path / "disk", copy)
    home_in_backup.take_out(disk)
    assert (content_of(disk / "app"), content_of(disk / "home")) == (APPS[name], home)
    assert sorted(path.name for path in disk.iterdir()) == ["app", "home"]


class CutOff(Exception):
    """The program was killed."""


def _cut_off_at(monkeypatch: pytest.MonkeyPatch, nth: int) -> None:
    rename, left = Path.rename, [nth]

    def cut(self: Path, target: Path) -> Path:
        left[0] -= 1
        if left[0] == 0:
            raise CutOff
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", cut)


@pytest.mark.parametrize("name", APPS)
@pytest.mark.parametrize("nth", range(1, 5))
def test_move_that_was_cut_off_is_finished_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, nth: int
) -> None:
    home = {"notes": "mine"}
    copy = make_disk(tmp_path / "copy", APPS[name], home)
    for move in (home_in_backup.put_in, home_in_backup.take_out):
        disk = copy if move is home_in_backup.put_in else restored(tmp_path / "disk", copy)
        with monkeypatch.context() as patch:
            _cut_off_at(patch, nth)
            with suppress(CutOff):
                move(disk)
        move(disk)
    assert (content_of(disk / "app"), content_of(disk / "home")) == (APPS[name], home)


def test_older_backup_with_a_folder_of_that_name_is_restored_as_it_is(tmp_path: Path) -> None:
    files = {f"{BOTH}/notes": "1", f"{HOME}/model": "m"}
    disk = make_disk(tmp_path, files, {})
    home_in_backup.take_out(disk)
    assert content_of(disk / "app") == {f"{BOTH}/notes": "1"}
    assert content_of(disk / "home") == {"model": "m"}
