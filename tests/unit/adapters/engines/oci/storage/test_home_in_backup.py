"""A backup has home and files whole, whatever the app has named its own; hostile names decide nothing."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest

from builderd.adapters.engines.oci.storage import tree
from builderd.adapters.engines.oci.storage.tree import HOME_IN_BACKUP as HOME

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
