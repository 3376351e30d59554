"""What nobody needs any more goes in the background, in turns; who closes waits for no more than the file at hand."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from builderd.adapters.engines.oci.storage import emptying
from builderd.adapters.engines.oci.storage.emptying import Emptying
from builderd.adapters.engines.oci.storage.subvolumes import folder
from builderd.adapters.engines.oci.storage.tree import clear


def fill(path: Path, count: int) -> Path:
    path.mkdir()
    for number in range(count):
        (path / f"{number}").touch()
    return path


def until(true: Callable[[], object]) -> bool:
    """Wait for it; whether it came."""
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
    emptying = Emptying()
    for path in (one, tmp_path / "gone", two):
        emptying.add(path)
    assert until_empty(one)
    assert until_empty(two)
    emptying.close()
    assert not caplog.records


def test_what_cannot_be_emptied_is_told_and_keeps_nobody_else_waiting(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    two = fill(tmp_path / "two", 3)
    emptying = Emptying()
    emptying.add(tmp_path / "link")
    emptying.add(two)
    assert until_empty(two)
    emptying.close()
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


def test_it_is_over_after_the_file_at_hand(tmp_path: Path) -> None:
    path = fill(tmp_path / "full", 10)
    asked = iter([False, False, False, True])
    with folder(path) as inside:
        assert not clear(inside, lambda: next(asked))
        assert len(list(path.iterdir())) == 7
        assert clear(inside)
    assert list(path.iterdir()) == []


def test_a_folder_that_is_fed_without_end_has_no_more_than_its_turns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fed, other = fill(tmp_path / "fed", 1), fill(tmp_path / "other", 3)
    fed_inode, begun = fed.stat().st_ino, threading.Event()

    def clear_or_feed(inside: int, is_over: Callable[[], bool]) -> bool:
        if os.fstat(inside).st_ino != fed_inode:
            return clear(inside, is_over)
        begun.set()
        while not is_over():
            time.sleep(0.001)
        return False

    monkeypatch.setattr(emptying, "SLICE_SECONDS", 0.02)
    monkeypatch.setattr(emptying, "clear", clear_or_feed)
    work = Emptying()
    work.add(fed)
    assert begun.wait(10)
    work.add(other)
    assert until_empty(other)
    monkeypatch.setattr(emptying, "clear", clear)
    assert until_empty(fed), "it has its turn again"
    work.close()


def test_a_folder_that_is_added_often_has_one_turn_among_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    often, other = fill(tmp_path / "often", 1), fill(tmp_path / "other", 1)
    names = {path.stat().st_ino: path.name for path in (often, other)}
    turns, go_on = list[str](), threading.Event()

    def clear_and_tell(inside: int, is_over: Callable[[], bool]) -> bool:
        turns.append(names[os.fstat(inside).st_ino])
        go_on.wait(10)
        return clear(inside, is_over)

    monkeypatch.setattr(emptying, "clear", clear_and_tell)
    work = Emptying()
    work.add(often)
    assert until(lambda: turns)
    for path in (often, often, often, other, often):
        work.add(path)
    go_on.set()
    assert until(lambda: len(turns) == 3)
    work.close()
    assert turns == ["often", "often", "other"], "again, for what came after the first turn began"


def test_closing_leaves_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = fill(tmp_path / "one", 3), fill(tmp_path / "two", 3)
    begun = threading.Event()

    def clear_slowly(_: int, is_over: Callable[[], bool]) -> bool:
        begun.set()
        while not is_over():
            time.sleep(0.001)
        return False

    monkeypatch.setattr(emptying, "clear", clear_slowly)
    work = Emptying()
    work.add(one)
    work.add(two)
    assert begun.wait(10)
    work.close()
    work.close()
    work.add(two)
    assert len(list(two.iterdir())) == 3
