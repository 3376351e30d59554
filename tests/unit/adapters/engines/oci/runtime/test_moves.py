"""Groups are kept quick to move to for as long as somebody moves, and not a moment longer."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from builderd.adapters.engines.oci.runtime import moves
from builderd.adapters.engines.oci.runtime.moves import QuickMoves

PATIENCE = 30.0


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it never came to that"
        time.sleep(0.001)


def keeping() -> bool:
    return any(thread.name == "moves" for thread in threading.enumerate())


class Groups:
    """A tree of groups in which this process is at ``place``."""

    def __init__(self, folder: Path, own: str, place: str) -> None:
        self.tasks = folder / place / "cgroup.procs"
        self.tasks.parent.mkdir(parents=True, exist_ok=True)
        self.tasks.touch()
        (folder / "own").write_text(own)
        self.moves = QuickMoves(folder, folder / "own")

    def moved(self) -> int:
        text = self.tasks.read_text()
        assert set(text) <= {"0"}, "nobody else is moved"
        return len(text)


@pytest.fixture
def groups(tmp_path: Path) -> Groups:
    (tmp_path / "cgroup.procs").touch()
    return Groups(tmp_path, "0::/system.slice/builderd.service\n", "system.slice/builderd.service")


def test_quick_moves_continue_while_moves_are_made(groups: Groups) -> None:
    with groups.moves.expected():
        until(lambda: groups.moved() > 3)
        with groups.moves.expected():
            pass
        before = groups.moved()
        until(lambda: groups.moved() > before + 3)
    until(lambda: not keeping())
    ended = groups.moved()
    time.sleep(0.05)
    assert groups.moved() == ended


def test_expected_moves_are_watched_and_given_up_later(groups: Groups, monkeypatch: pytest.MonkeyPatch) -> None:
    # Long enough for two moves of a thread that a busy machine seldom runs.
    monkeypatch.setattr(moves, "_SOON_SECONDS", 1.0)
    groups.moves.prewarm()
    until(lambda: groups.moved() > 1)
    until(lambda: not keeping())
    with groups.moves.expected():
        until(lambda: groups.moved() > 0)  # written anew from its beginning
    until(lambda: not keeping())


def test_there_is_one_thread_however_many_move(groups: Groups) -> None:
    with groups.moves.expected(), groups.moves.expected():
        groups.moves.prewarm()
        assert [thread.name for thread in threading.enumerate()].count("moves") == 1
    until(lambda: not keeping())


def test_on_a_machine_with_groups_of_both_versions_it_is_one_of_version_1(tmp_path: Path) -> None:
    own = "9:name=systemd:/\n2:cpu,cpuacct:/user.slice\n0::/elsewhere\n"
    groups = Groups(tmp_path, own, "cpu/user.slice")
    with groups.moves.expected():
        until(lambda: groups.moved() > 1)
    until(lambda: not keeping())


@pytest.mark.parametrize("own", ["", "0::/gone\n", "0::/../../outside\n"])
def test_without_a_group_to_write_to_nothing_is_lost_but_time(tmp_path: Path, own: str) -> None:
    (tmp_path / "cgroup.procs").touch()
    (tmp_path / "own").write_text(own)
    unlucky = QuickMoves(tmp_path, tmp_path / "own")
    for _ in range(2):
        with unlucky.expected():
            until(lambda: not keeping())


def test_a_move_that_comes_as_the_last_one_ends_is_not_overlooked(
    groups: Groups, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(moves, "_PAUSE", 0.0)
    for _ in range(200):
        with groups.moves.expected():
            assert keeping()
    until(lambda: not keeping())
