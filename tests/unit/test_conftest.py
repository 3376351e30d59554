"""The suite's own rule: in CI a test that needs root and is skipped has failed."""

from pathlib import Path

import pytest

pytest_plugins = ["pytester"]

SKIPPED_ROOT_TEST = """
import pytest

@pytest.mark.root
def test_needs_root():
    pytest.skip("no runsc here")

def test_needs_nothing():
    pytest.skip("by choice")
"""


@pytest.fixture
def suite(pytester: pytest.Pytester) -> pytest.Pytester:
    conftest = Path(__file__).parents[1] / "conftest.py"
    pytester.makeconftest(conftest.read_text())
    pytester.makeini("[pytest]\nasyncio_default_fixture_loop_scope = function\nmarkers =\n  root: r\n  postgres: p\n")
    pytester.makepyfile(SKIPPED_ROOT_TEST)
    return pytester


def test_a_skipped_root_test_fails_where_root_tests_are_required(
    suite: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BUILDERD_REQUIRE_ROOT_TESTS", "1")
    result = suite.runpytest()
    result.assert_outcomes(failed=1, skipped=1)
    result.stdout.fnmatch_lines(["*skipped, though BUILDERD_REQUIRE_ROOT_TESTS=1*"])


def test_a_skipped_root_test_is_only_skipped_elsewhere(suite: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BUILDERD_REQUIRE_ROOT_TESTS", raising=False)
    suite.runpytest().assert_outcomes(skipped=2)


def test_without_root_a_root_test_says_why_it_is_skipped(
    suite: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("BUILDERD_REQUIRE_ROOT_TESTS", raising=False)
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    suite.runpytest("-rs").stdout.fnmatch_lines(["*marked root: run as root*"])
