"""Counted CPU time of a launcher: nothing by halves, and no group is left."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from benchmarks import cpu
from benchmarks.cpu import counted_launcher

LAUNCHER = 17


@pytest.fixture
def hierarchies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Return the root of the hierarchy that counts; the service has one launcher."""
    counting, sharing = tmp_path / "cpuacct", tmp_path / "cpu"
    for folder in (counting, sharing):
        folder.mkdir()
    monkeypatch.setattr(cpu, "CPUACCT", counting)
    monkeypatch.setattr(cpu, "CPU", sharing)
    monkeypatch.setattr(cpu, "_children", lambda _: [LAUNCHER])
    monkeypatch.setattr(cpu, "_words", lambda _: b"launcher")
    return counting


def test_nothing_is_counted_where_shims_leave_the_group(hierarchies: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    both = hierarchies.parent / "cpu,cpuacct"
    both.mkdir()
    for name in ("cpu", "cpuacct"):
        (hierarchies.parent / f"linked {name}").symlink_to(both)
        monkeypatch.setattr(cpu, name.upper(), hierarchies.parent / f"linked {name}")
    with counted_launcher(os.getpid()) as group:
        assert group is None
    assert list(both.iterdir()) == []


def test_nothing_is_counted_of_a_service_without_a_launcher(hierarchies: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "_children", lambda _: [])
    with counted_launcher(os.getpid()) as group:
        assert group is None
    assert list(hierarchies.iterdir()) == []


def test_a_process_that_forks_while_it_is_moved_does_not_keep_the_group(
    hierarchies: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder with a file cannot be removed, as a control group with a process cannot."""
    forks, rmdir = [20, 19, 18], Path.rmdir

    def fork_first(group: Path) -> None:
        if forks:
            (group / "cgroup.procs").write_text(str(forks.pop()))
        else:
            (group / "cgroup.procs").unlink()
        rmdir(group)

    monkeypatch.setattr(Path, "rmdir", fork_first)
    with counted_launcher(os.getpid()) as group:
        assert group
        assert (group / "cgroup.procs").read_text() == str(LAUNCHER)
    assert (hierarchies / "cgroup.procs").read_text() == "20"
    assert not group.exists()
