"""Idle CPUs are counted from two looks at /proc/stat."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from builderd.linux import cpu_time
from builderd.linux.cpu_time import IdleCpus, children_seconds, idle_seconds

STAT = "cpu  100 0 50 {idle} 40 0 0 0 0 0\ncpu0 100 0 50 1000 40 0 0 0 0 0\n"


def test_waiting_for_a_disk_is_idle() -> None:
    assert idle_seconds(STAT.format(idle=960)) * cpu_time._TICKS == 1000


def test_the_idle_time_is_that_since_the_last_look(tmp_path: Path) -> None:
    stat = tmp_path / "stat"
    stat.write_text(STAT.format(idle=1000))
    idle = IdleCpus(stat)
    assert idle.since_last() == 0
    stat.write_text(STAT.format(idle=100_000))
    assert idle.since_last() > 0
    assert idle.since_last() == 0


def test_the_cpu_time_of_a_child_is_counted_once_it_has_ended() -> None:
    before = children_seconds()
    subprocess.run([sys.executable, "-S", "-c", "for _ in range(10 ** 6): pass"], check=True)
    assert children_seconds() > before
