"""Deferred sync: a marked folder counts as damaged after a crash of the machine, until it was synced."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from builderd.engine.oci.storage import store as module
from builderd.engine.oci.storage.store import SYNC_MARK, DeferredSync, is_damaged


@pytest.fixture
def filled(tmp_path: Path) -> Path:
    folder = tmp_path / "filled"
    folder.mkdir()
    return folder


@pytest.fixture
def sync(tmp_path: Path) -> DeferredSync:
    return DeferredSync(tmp_path)


def reboot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "boot_id", lambda: "another boot")


def test_a_mark_means_nothing_until_the_machine_goes_down(
    sync: DeferredSync, filled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync.mark(filled)
    assert not is_damaged(filled)
    assert DeferredSync(tmp_path).adopt(filled)
    reboot(monkeypatch)
    assert is_damaged(filled)
    assert not DeferredSync(tmp_path).adopt(filled)
    sync.close()


def test_a_synced_folder_survives_a_crash(sync: DeferredSync, filled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sync.mark(filled)
    sync.sync()
    assert list(filled.iterdir()) == []
    reboot(monkeypatch)
    assert not is_damaged(filled)


def test_a_mark_whose_text_was_lost_in_the_crash_counts_as_damage(filled: Path) -> None:
    (filled / SYNC_MARK).touch()
    assert is_damaged(filled)


def test_the_sync_runs_after_a_delay(sync: DeferredSync, filled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DELAY_SECONDS", 0.01)
    sync.mark(filled)
    deadline = time.monotonic() + 30
    while (filled / SYNC_MARK).exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not (filled / SYNC_MARK).exists()


def test_the_next_service_syncs_the_folders_marked_by_a_killed_one(
    sync: DeferredSync, filled: Path, tmp_path: Path
) -> None:
    sync.mark(filled)
    sync.close()
    following = DeferredSync(tmp_path)
    assert following.adopt(filled)
    following.sync()
    assert not (filled / SYNC_MARK).exists()


def test_a_folder_filled_again_during_the_sync_keeps_its_mark(
    sync: DeferredSync, filled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync.mark(filled)
    monkeypatch.setattr(module, "sync_file_system", lambda inside: sync.mark(filled))
    sync.sync()
    assert (filled / SYNC_MARK).exists()
    sync.close()


def test_a_folder_deleted_before_the_sync_is_ignored(sync: DeferredSync, filled: Path) -> None:
    sync.mark(filled)
    (filled / SYNC_MARK).unlink()
    filled.rmdir()
    sync.sync()
