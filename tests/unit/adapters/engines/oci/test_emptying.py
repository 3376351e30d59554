"""What nobody needs any more goes in the background, and whoever closes waits for no more than the file at hand."""

from __future__ import annotations

import logging
import threading
import time
from pathlib import Path

import pytest

from builderd.adapters.engines.oci import emptying
from builderd.adapters.engines.oci.emptying import Emptying
from builderd.adapters.engines.oci.subvolumes import folder
from builderd.adapters.engines.oci.tree import clear


def fill(path: Path, count: int) -> Path:
    path.mkdir()
    for number in range(count):
        (path / f"{number}").touch()
    return path


def until_empty(path: Path) -> bool:
    deadline = time.monotonic() + 10
    while any(path.iterdir()) and time.monotonic() < deadline:
        time.sleep(0.005)
    return not any(path.iterdir())


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
        clear(inside, lambda: next(asked))
    assert len(list(path.iterdir())) == 7


def test_closing_leaves_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = fill(tmp_path / "one", 3), fill(tmp_path / "two", 3)
    begun = threading.Event()

    def clear_slowly(inside: int, is_over: object) -> None:
        assert callable(is_over)
        begun.set()
        while not is_over():
            time.sleep(0.001)

    monkeypatch.setattr(emptying, "clear", clear_slowly)
    work = Emptying()
    work.add(one)
    work.add(two)
    assert begun.wait(10)
    work.close()
    work.close()
    work.add(two)
    assert len(list(two.iterdir())) == 3
