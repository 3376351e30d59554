"""What is marked counts as damaged after a crash of the machine, until it was synced."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from builderd.adapters.engines.oci.storage import settling as module
from builderd.adapters.engines.oci.storage.settling import MARK, Settling, is_damaged


@pytest.fixture
def filled(tmp_path: Path) -> Path:
    folder = tmp_path / "filled"
    folder.mkdir()
    return folder


@pytest.fixture
def settling(tmp_path: Path) -> Settling:
    return Settling(tmp_path)


def reboot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    boot = tmp_path / "boot_id"
    boot.write_text("another boot\n")
    monkeypatch.setattr(module, "BOOT_ID", boot)


def test_a_mark_means_nothing_until_the_machine_goes_down(
    settling: Settling, filled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settling.mark(filled)
    assert not is_damaged(filled)
    assert Settling(tmp_path).adopt(filled)
    reboot(tmp_path, monkeypatch)
    assert is_damaged(filled)
    assert not Settling(tmp_path).adopt(filled)
    settling.close()


def test_what_is_settled_survives_it(
    settling: Settling, filled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settling.mark(filled)
    settling.settle()
    assert list(filled.iterdir()) == []
    reboot(tmp_path, monkeypatch)
    assert not is_damaged(filled)


def test_a_mark_whose_text_was_lost_in_the_crash_counts_as_damage(filled: Path) -> None:
    (filled / MARK).touch()
    assert is_damaged(filled)


def test_it_settles_by_itself(settling: Settling, filled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DELAY_SECONDS", 0.01)
    settling.mark(filled)
    deadline = time.monotonic() + 30
    while (filled / MARK).exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not (filled / MARK).exists()


def test_the_marks_of_a_killed_service_are_settled_by_the_next(
    settling: Settling, filled: Path, tmp_path: Path
) -> None:
    settling.mark(filled)
    settling.close()
    following = Settling(tmp_path)
    assert following.adopt(filled)
    following.settle()
    assert not (filled / MARK).exists()


def test_what_is_filled_again_during_the_sync_keeps_its_mark(
    settling: Settling, filled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settling.mark(filled)
    monkeypatch.setattr(module, "sync_file_system", lambda inside: settling.mark(filled))
    settling.settle()
    assert (filled / MARK).exists()
    settling.close()


def test_what_is_deleted_meanwhile_is_no_trouble(settling: Settling, filled: Path) -> None:
    settling.mark(filled)
    (filled / MARK).unlink()
    filled.rmdir()
    settling.settle()
