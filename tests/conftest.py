"""Fixtures of every test, and the rule for tests that need root, a server or HAProxy.

Such a test is skipped, with the reason, where its need is not met. Where BUILDERD_REQUIRE_ROOT_TESTS=1 is set, as in
CI, a skip of one is a failure: a suite that quietly left them out would be green for the wrong reason.
"""

import os
import shutil
from collections.abc import Generator

import pytest
from hypothesis import settings
from tests.parts import NEEDS, NEEDS_ROOT, may_need, may_use_incus

# On every machine as in CI: the same examples in each run, and no time limit that a busy machine would miss.
# script/soak looks at others each time.
settings.load_profile("ci")
settings.register_profile("soak", settings.get_profile("ci"), derandomize=False)

pytest_plugins = [
    "tests.clusters",
    "tests.garbage",
    "tests.postgres",
    "tests.previews.proxy",
    "tests.domains.parts",
    "tests.times",
]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Refuse a marked test that script/test would not find."""
    for item in items:
        if item.get_closest_marker("slow"):
            continue
        if any(item.get_closest_marker(need) for need in NEEDS) and not may_need(item.path):
            raise pytest.UsageError(f"{item.nodeid} has a marker that neither its file nor its conftest.py names")
        if item.get_closest_marker("incus") and not may_use_incus(item.path):
            raise pytest.UsageError(f"{item.nodeid} runs on Incus, which neither its file nor its conftest.py says")


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("haproxy") and not _has("haproxy"):
        pytest.skip("marked haproxy: install Debian's package haproxy")
    if os.geteuid() == 0:
        return
    for need in NEEDS_ROOT:
        if item.get_closest_marker(need):
            pytest.skip(f"marked {need}: run as root")


def _has(program: str) -> bool:
    """Debian keeps daemons where only root's PATH leads."""
    return bool(shutil.which(program) or shutil.which(program, path="/usr/sbin"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    marked = any(item.get_closest_marker(need) for need in NEEDS)
    if report.skipped and marked and os.environ.get("BUILDERD_REQUIRE_ROOT_TESTS") == "1":
        report.outcome = "failed"
        report.longrepr = f"skipped, though BUILDERD_REQUIRE_ROOT_TESTS=1 is set: {report.longrepr}"
    return report
