"""Limits of the list of files on a disk; nothing is left where it exceeds them."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from builderd.adapters.backup_repositories.restic import manifest


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """The disk, and the folder of the list."""
    disk, work = tmp_path / "disk", tmp_path / "work"
    for folder in (disk, work):
        folder.mkdir()
    monkeypatch.setattr(manifest, "DISK", os.fsencode(disk))
    monkeypatch.setattr(manifest, "LIST", os.fsencode(work / "manifest"))
    return disk, work


def _record(limit: int, capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    assert manifest.main(["record", str(limit)]) == 0
    answer: dict[str, object] = json.loads(capsys.readouterr().out)
    return answer


def test_a_list_that_grows_too_long_is_not_kept(
    folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    disk, work = folders
    monkeypatch.setattr(manifest, "LEAST_LIST", 0)
    (disk / "a").touch()
    assert _record(64 * 1000, capsys)["files"] == 1
    before = (work / "manifest").read_bytes()
    for number in range(10):
        (disk / f"{number}-{'x' * 200}").touch()
    assert str(_record(64 * 1000, capsys)["too_long"]).endswith("x" * 200)
    assert [path.name for path in work.iterdir()] == ["manifest"]
    assert (work / "manifest").read_bytes() == before
    assert _record(64 * 10_000, capsys)["files"] == 11


def test_a_small_disk_may_have_thousands_of_files(
    folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    disk, _ = folders
    for number in range(3000):
        (disk / str(number)).touch()
    assert _record(1000, capsys)["files"] == 3000


def test_files_that_claim_too_much_leave_no_list(
    folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    disk, work = folders
    (disk / "big").write_bytes(b"x" * 1000)
    assert _record(999, capsys) == {"too_much": "big"}
    assert list(work.iterdir()) == []


def test_a_list_without_room_is_no_fault_of_the_files(
    folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, work = folders

    def full(*_: object) -> dict[str, object]:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(manifest, "_write", full)
    assert _record(1000, capsys) == {"full": "No space left on device"}
    assert list(work.iterdir()) == []
