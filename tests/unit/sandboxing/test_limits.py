"""Limits of a confined process, set on a process of our own and by prlimit(1): both are the same."""

from __future__ import annotations

import subprocess
import sys

import pytest

from builderd.sandboxing.bubblewrap import limited
from builderd.sandboxing.privileges import Limits

LIMITS = Limits(
    cpu_seconds=7, memory=1 << 30, address_space=2 << 30, file_bytes=5_000_000, processes=5000, descriptors=40
)
SHOW = "import resource as r; print([r.getrlimit(k) for k in range(16)])"
APPLY = f"from builderd.sandboxing.privileges import Limits; {LIMITS!r}.apply(); "


def shown(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_limits_applied_and_limits_by_prlimit_are_the_same() -> None:
    by_prlimit = shown(*limited(LIMITS), sys.executable, "-c", SHOW)
    assert shown(sys.executable, "-c", APPLY + SHOW) == by_prlimit
    assert "(7, 9)" in by_prlimit
    assert by_prlimit.count(f"({1 << 30}, {1 << 30})") == 1


def test_limits_that_are_not_given_stay_and_no_core_is_dumped() -> None:
    assert Limits().arguments() == ["--core=0:0"]


@pytest.mark.parametrize(
    ("given", "option"), [(Limits(cpu_seconds=1), "--cpu=1:3"), (Limits(processes=0), "--nproc=0:0")]
)
def test_cpu_alone_has_a_grace_between_its_signals(given: Limits, option: str) -> None:
    assert given.arguments()[0] == option
