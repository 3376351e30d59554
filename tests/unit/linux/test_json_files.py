"""A file is replaced as a whole, and is on the disk where that is asked for."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from builderd.domain.errors import EngineUnavailable
from builderd.linux.json_files import read_json, write_json


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The inodes that were waited for."""
    inodes: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: inodes.append(os.fstat(descriptor).st_ino))
    return inodes


def test_a_durable_file_is_on_the_disk_before_its_name_is(tmp_path: Path, synced: list[int]) -> None:
    file = tmp_path / "file.json"
    write_json(file, {"a": 1}, durable=True)
    assert synced == [file.stat().st_ino, tmp_path.stat().st_ino]
    assert list(tmp_path.iterdir()) == [file]


def test_write_without_sync_does_not_wait_for_the_disk(tmp_path: Path, synced: list[int]) -> None:
    write_json(tmp_path / "file.json", {"a": 1})
    assert synced == []
    assert read_json(tmp_path / "file.json", "") == {"a": 1}


@pytest.mark.parametrize("content", [b"", b"\0" * 80, b"\xff", b'{"a"'])
def test_truncated_json_file_is_reported_with_a_remedy(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "file.json"
    file.write_bytes(content)
    with pytest.raises(EngineUnavailable, match=rf"{file} is damaged\. Remove it\."):
        read_json(file, "Remove it.")


def test_a_file_that_is_not_there_says_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert read_json(tmp_path / "none.json", "") is None
    assert read_json(tmp_path / "file/none.json", "") is None
