"""CPU time of children."""

from __future__ import annotations

import subprocess
import sys

from builderd.linux.processes import children_seconds


def test_the_cpu_time_of_a_child_is_counted_once_it_has_ended() -> None:
    before = children_seconds()
    subprocess.run([sys.executable, "-S", "-c", "for _ in range(10 ** 6): pass"], check=True)
    assert children_seconds() > before
