"""Background delete empties folders round robin; closing waits for the file being deleted and no longer."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from builderd.engine.oci.storage import disks
from builderd.engine.oci.storage.disks import BackgroundDelete
from builderd.engine.oci.storage.subvolumes import folder
from builderd.engine.oci.storage.tree import clear


def fill(path: Path, count: int) -> Path:
    path.mkdir()
    for number in range(count):
        (path / f"{number}").touch()
    return path


def until(true: Callable[[], object]) -> bool:
    """Wait up to 10 s for the condition; return whether it came true."""
    deadline = time.monotonic() + 10
    while not true() and time.monotonic() < deadline:
        time.sleep(0.005)
    return bool(true())


def until_empty(path: Path) -> bool:
    return until(lambda: not any(path.iterdir()))


def test_one_folder_after_the_other_is_emptied_also_where_one_is_gone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    one, two = fill(tmp_path / "one", 3), fill(tmp_path / "two", 3)
    work = BackgroundDelete()
    for path in (one, tmp_path / "gone", two):
        work.add(path)
    assert until_empty(one)
    assert until_empty(two)
    work.close()
    assert not caplog.records


def test_a_folder_that_cannot_be_emptied_is_logged_and_blocks_no_other(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    two = fill(tmp_path / "two", 3)
    work = BackgroundDelete()
    work.add(tmp_path / "link")
    work.add(two)
    assert until_empty(two)
    work.close()
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


def test_clearing_stops_after_the_current_file(tmp_path: Path) -> None:
    path = fill(tmp_path / "full", 10)
    asked = iter([False, False, False, True])
    with folder(path) as inside:
        assert not clear(inside, lambda: next(asked))
        assert len(list(path.iterdir())) == 7
        assert clear(inside)
    assert list(path.iterdir()) == []


def test_a_folder_refilled_without_end_gets_one_slice_a_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fed, other = fill(tmp_path / "fed", 1), fill(tmp_path / "other", 3)
    fed_inode, begun = fed.stat().st_ino, threading.Event()

    def clear_or_refill(inside: int, is_over: Callable[[], bool]) -> bool:
        if os.fstat(inside).st_ino != fed_inode:
            return clear(inside, is_over)
        begun.set()
        while not is_over():
            time.sleep(0.001)
        return False

    monkeypatch.setattr(disks, "SLICE_SECONDS", 0.02)
    monkeypatch.setattr(disks, "clear", clear_or_refill)
    work = BackgroundDelete()
    work.add(fed)
    assert begun.wait(10)
    work.add(other)
    assert until_empty(other)
    monkeypatch.setattr(disks, "clear", clear)
    assert until_empty(fed), "it gets its slice again"
    work.close()


def test_closing_leaves_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = fill(tmp_path / "one", 3), fill(tmp_path / "two", 3)
    begun = threading.Event()

    def clear_slowly(_: int, is_over: Callable[[], bool]) -> bool:
        begun.set()
        while not is_over():
            time.sleep(0.001)
        return False

    monkeypatch.setattr(disks, "clear", clear_slowly)
    work = BackgroundDelete()
    work.add(one)
    work.add(two)
    assert begun.wait(10)
    work.close()
    work.close()
    work.add(two)
    assert len(list(two.iterdir())) == 3
