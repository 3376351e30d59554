"""The ten files of tests that took longest, at the end of each run.

CPU is that of the process and of its children that have ended: what a service uses counts where it ends.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Generator
from dataclasses import dataclass

import pytest

CPU = "cpu"


@dataclass(slots=True)
class Times:
    tests: int = 0
    wall: float = 0.0
    cpu: float = 0.0


_of_files: dict[str, Times] = defaultdict(Times)
_last = [0.0]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol() -> Generator[None, object, object]:
    _last[0] = _used()
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    now = _used()
    report.user_properties.append((CPU, now - _last[0]))
    _last[0] = now
    return report


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Run where the reports come together: with pytest-xdist, in the process that prints."""
    times = _of_files[report.nodeid.partition("::")[0]]
    times.tests += report.when == "call"
    times.wall += report.duration
    times.cpu += sum(float(str(value)) for name, value in report.user_properties if name == CPU)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if sum(times.tests for times in _of_files.values()) < 100:
        return
    terminalreporter.section("slowest files: seconds, of which CPU, tests")
    for name, times in sorted(_of_files.items(), key=lambda item: -item[1].wall)[:10]:
        terminalreporter.write_line(f"{times.wall:8.1f} {times.cpu:8.1f} {times.tests:6} {name}")


def _used() -> float:
    return sum(os.times()[:4])
