"""Files that are replaced as a whole, and stay as they were where that fails."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from builderd.linux import atomic_files


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
