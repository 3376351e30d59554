"""Durable files are synced before they get their name, and are private to their owner."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from builderd.linux import durable


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, bytes | list[str]]]:
    """Record what is synced: a file's content, or the names in a folder, at that moment."""
    kept: list[tuple[str, bytes | list[str]]] = []

    def keep(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        kept.append((path.name, sorted(one.name for one in path.iterdir()) if path.is_dir() else path.read_bytes()))

    monkeypatch.setattr(os, "fsync", keep)
    return kept


def test_a_copy_is_on_the_disk_as_a_whole(tmp_path: Path, synced: list[tuple[str, bytes | list[str]]]) -> None:
    content = os.urandom(3_000_000)
    (tmp_path / "from").write_bytes(content)
    durable.copy(tmp_path / "from", tmp_path / "to")
    assert synced == [("to", content)]


def test_durable_file_is_private_and_follows_no_link(tmp_path: Path) -> None:
    durable.write(tmp_path / "key", b"secret")
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600
    (tmp_path / "elsewhere").write_bytes(b"another's")
    (tmp_path / "link").symlink_to("elsewhere")
    with pytest.raises(OSError, match="symbolic links"):
        durable.write(tmp_path / "link", b"x")
    assert (tmp_path / "elsewhere").read_bytes() == b"another's"
