"""Durable files are synced before they get their name, and are private to their owner."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from builderd.linux import durable


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, bytes | list[str]]]:
    """What the disk was asked to keep: a file's content, or the names in a folder, at that moment."""
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
    durable.replace(tmp_path / "key", b"new")
    assert synced == [("key.new", b"new"), (tmp_path.name, ["key"])]
    assert (tmp_path / "key").read_bytes() == b"new"


def test_a_copy_is_on_the_disk_as_a_whole(tmp_path: Path, synced: list[tuple[str, bytes | list[str]]]) -> None:
    content = os.urandom(3_000_000)
    (tmp_path / "from").write_bytes(content)
    durable.copy(tmp_path / "from", tmp_path / "to")
    assert synced == [("to", content)]


def test_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError("no space is left")

    durable.write(tmp_path / "key", b"old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        durable.replace(tmp_path / "key", b"new, and longer")
    assert (tmp_path / "key").read_bytes() == b"old"
    monkeypatch.undo()
    durable.replace(tmp_path / "key", b"new")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"key": b"new"}


def test_durable_file_is_private_and_follows_no_link(tmp_path: Path) -> None:
    durable.replace(tmp_path / "key", b"secret")
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600
    (tmp_path / "elsewhere").write_bytes(b"another's")
    (tmp_path / "link").symlink_to("elsewhere")
    with pytest.raises(OSError, match="symbolic links"):
        durable.write(tmp_path / "link", b"x")
    assert (tmp_path / "elsewhere").read_bytes() == b"another's"
