"""Files that are replaced as a whole, and stay as they were where that fails."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from builderd.core.errors import EngineUnavailable
from builderd.linux import atomic_files
from builderd.linux.atomic_files import read_if_there, read_json, write_json


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, bytes | list[str]]]:
    """Record what is synced: a file's content, or the names in a folder, at that moment."""
    kept: list[tuple[str, bytes | list[str]]] = []

    def keep(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        kept.append((path.name, sorted(one.name for one in path.iterdir()) if path.is_dir() else path.read_bytes()))

    monkeypatch.setattr(os, "fsync", keep)
    return kept


def test_a_file_is_on_the_disk_before_it_takes_the_other_s_place_and_its_name_after(
    tmp_path: Path, synced: list[tuple[str, bytes | list[str]]]
) -> None:
    (tmp_path / "key").write_bytes(b"old")
    atomic_files.replace(tmp_path / "key", b"new", durable=True)
    ((name, content), folder) = synced
    assert (name.startswith(".key."), content, folder) == (True, b"new", (tmp_path.name, ["key"]))
    assert (tmp_path / "key").read_bytes() == b"new"


def test_old_file_stays_when_the_new_one_cannot_be_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError("no space is left")

    (tmp_path / "key").write_bytes(b"old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        atomic_files.replace(tmp_path / "key", b"new, and longer", durable=True)
    assert (tmp_path / "key").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["key"]
    monkeypatch.undo()
    atomic_files.replace(tmp_path / "key", b"new", durable=True)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"key": b"new"}


def test_a_replaced_file_has_the_wanted_mode_and_replaces_a_link_itself(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_bytes(b"another's")
    (tmp_path / "link").symlink_to("elsewhere")
    atomic_files.replace(tmp_path / "link", b"secret")
    assert ((tmp_path / "link").stat().st_mode & 0o777, (tmp_path / "link").is_symlink()) == (0o600, False)
    assert (tmp_path / "elsewhere").read_bytes() == b"another's"
    atomic_files.replace(tmp_path / "link", b"for all", mode=0o644)
    assert (tmp_path / "link").stat().st_mode & 0o777 == 0o644


def test_a_copy_is_on_the_disk_as_a_whole(tmp_path: Path, synced: list[tuple[str, bytes | list[str]]]) -> None:
    content = os.urandom(3_000_000)
    (tmp_path / "from").write_bytes(content)
    atomic_files.copy(tmp_path / "from", tmp_path / "to")
    assert synced == [("to", content)]


def test_durable_file_is_private_and_follows_no_link(tmp_path: Path) -> None:
    atomic_files.write(tmp_path / "key", b"secret")
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600
    (tmp_path / "elsewhere").write_bytes(b"another's")
    (tmp_path / "link").symlink_to("elsewhere")
    with pytest.raises(OSError, match="symbolic links"):
        atomic_files.write(tmp_path / "link", b"x")
    assert (tmp_path / "elsewhere").read_bytes() == b"another's"


@pytest.fixture
def synced_json(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The inodes that were waited for."""
    inodes: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: inodes.append(os.fstat(descriptor).st_ino))
    return inodes


def test_a_durable_file_is_on_the_disk_before_its_name_is(tmp_path: Path, synced_json: list[int]) -> None:
    file = tmp_path / "file.json"
    write_json(file, {"a": 1}, durable=True)
    assert synced_json == [file.stat().st_ino, tmp_path.stat().st_ino]
    assert list(tmp_path.iterdir()) == [file]


def test_write_without_sync_does_not_wait_for_the_disk(tmp_path: Path, synced_json: list[int]) -> None:
    write_json(tmp_path / "file.json", {"a": 1})
    assert synced_json == []
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


def test_missing_file_is_none_and_other_errors_raise(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("ü")
    assert read_if_there(f"{tmp_path}/file") == "ü"
    assert read_if_there(tmp_path / "none") is None
    with pytest.raises(IsADirectoryError):
        read_if_there(tmp_path)
