"""Files of a control group, on folders that look like its."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from builderd.adapters.engines.oci.runtime import group_files


@pytest.fixture
def group(tmp_path: Path) -> Path:
    (tmp_path / "inner").mkdir()
    (tmp_path / "memory.events").write_text("oom 1\noom_kill 3\nlocal max\n\n")
    return tmp_path


def test_a_group_s_file_is_never_created(group: Path) -> None:
    with pytest.raises(FileNotFoundError):
        group_files.write(group / "freezer.state", "FROZEN")
    assert not (group / "freezer.state").exists()


def test_numbers_are_read_by_their_names(group: Path) -> None:
    assert group_files.counters(group / "memory.events") == {"oom": 1, "oom_kill": 3}
    assert group_files.counter(group / "memory.events", "oom_kill") == 3
    assert group_files.counter(group / "memory.events", "low") == 0


def test_processes_are_found_below_a_group(group: Path) -> None:
    (group / "cgroup.procs").write_text("3\n4\n")
    (group / "inner/cgroup.procs").write_text("5\n")
    assert sorted(group_files.processes_below(group)) == [3, 4, 5]
    assert not group_files.processes_below(group / "gone")


def test_group_in_removal_reads_as_missing_and_other_errors_stay(group: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    number = errno.ENODEV

    def refuse(file: Path, *_: object) -> int:
        raise OSError(number, os.strerror(number), str(file))

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(FileNotFoundError):
        group_files.write(group / "memory.events", "1")
    number = errno.EIO
    with pytest.raises(OSError, match="Input/output error"):
        group_files.write(group / "memory.events", "1")
