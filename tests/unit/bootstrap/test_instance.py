"""An instance is a data directory on a host, whatever the host is called and wherever the directory lies on it."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from builderd.bootstrap.database import host_id, is_copy, this_instance
from builderd.settings import Settings


def test_the_machine_id_is_not_shown(tmp_path: Path) -> None:
    (tmp_path / "machine-id").write_text("e08d2021fbdd6f894fde550c98aff54d\n")
    made = host_id(tmp_path / "machine-id", tmp_path / "host")
    assert made == host_id(tmp_path / "machine-id", tmp_path / "host")
    assert "e08d2021" not in made
    assert not (tmp_path / "host").exists()


@pytest.mark.parametrize("content", [None, "", "uninitialized\n"])
def test_a_host_without_a_machine_id_gets_one_that_stays(tmp_path: Path, content: str | None) -> None:
    file = tmp_path / "machine-id"
    if content is not None:
        file.write_text(content)
    first = host_id(file, tmp_path / "host")
    assert first == host_id(file, tmp_path / "host")
    assert first != host_id(file, tmp_path / "another")


def test_copied_data_directory_differs_from_a_moved_one(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    owner = this_instance(Settings(data_dir=one))
    shutil.copytree(one, two)
    copied = this_instance(Settings(data_dir=two))
    assert copied.member == owner.member
    assert is_copy(copied, owner)
    assert not is_copy(owner, owner)
    shutil.rmtree(one)
    assert not is_copy(copied, owner)
    assert not is_copy(replace(copied, host_id="elsewhere"), owner)
