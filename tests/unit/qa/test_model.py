"""QA checks and their messages."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.contract.store.samples import NOW

from builderd.core.ids import BuilderId, SandboxId
from builderd.core.resources import Resources
from builderd.qa.model import (
    MAX_FINDINGS,
    Check,
    CheckName,
    FileState,
    Outcome,
    QaReport,
    ReportStatus,
    SecondLook,
    Visit,
    as_not_judged,
    check_alive,
    check_answer,
    check_files,
    check_idle,
    check_log,
    check_memory,
    check_memory_use,
    check_port,
    check_term,
    errors_in,
    gate_passed,
    in_order,
    wanted,
)
from builderd.sandboxes.model import EndCause, SandboxEnd, SandboxReport, SandboxState

RUNS = SandboxReport(SandboxId("aa"), None, SandboxState.RUNNING, "10.0.0.2")
PYTHON = ["Traceback (most recent call last):", '  File "main.py", line 3, in f', "    f()", "KeyError: 'x'"]
NODE = ["TypeError: Cannot read properties of undefined", "    at Object.<anonymous> (/app/server.js:3:7)"]


@pytest.mark.parametrize("status", [200, 204, 301, 401, 404, 418, 499])
def test_anything_below_500_is_an_answer(status: int) -> None:
    assert check_answer(Visit(status, 0.01), "/", []).outcome is Outcome.PASSED


def test_qa_failure_for_500_shows_request_response_and_log() -> None:
    check = check_answer(Visit(503, 0.01, excerpt="<h1>Sorry</h1>"), "/", ["boom"], "Add poppler-utils.")
    assert check.outcome is Outcome.FAILED
    for words in ("GET /", "503 Service Unavailable", "<h1>Sorry</h1>", "boom", "Add poppler-utils."):
        assert words in check.message


@pytest.mark.parametrize("status", [404, 410, 302, 500])
def test_redirect_to_a_page_that_is_not_there_fails(status: int) -> None:
    check = check_answer(Visit(status, 0.01, led_to="/home"), "/", ["boom"])
    assert check.outcome is Outcome.FAILED
    assert "which leads to /home" in check.message
    assert check_answer(Visit(401, 0.01, led_to="/home"), "/", []).outcome is Outcome.PASSED


def test_error_with_status_200_is_a_warning() -> None:
    check = check_answer(Visit(200, 0.01, error='{"error": "no database"}'), "/", [])
    assert check.outcome is Outcome.WARNING
    assert "no database" in check.message


def test_no_answer_says_why() -> None:
    check = check_answer(Visit(None, 15.0, "nothing came within 15 seconds"), "/", [])
    assert check.outcome is Outcome.FAILED
    assert "nothing came within 15 seconds" in check.message


def test_unknown_status_is_shown_by_number() -> None:
    assert "answered 799" in check_answer(Visit(799, 0.1), "/", []).message


def test_alive_means_running_and_still_listening() -> None:
    ended = replace(RUNS, state=SandboxState.EXITED, end=SandboxEnd(EndCause.EXITED, 3, NOW))
    resources = Resources()
    assert check_alive(SecondLook(RUNS, True, 0.5), 8000, "/", resources, []).outcome is Outcome.PASSED
    assert (
        "listens no more on 0.0.0.0:8000" in check_alive(SecondLook(RUNS, False, 0.5), 8000, "/", resources, []).message
    )
    assert "exited with code 3" in check_alive(SecondLook(ended, False, 0.5), 8000, "/", resources, ["bye"]).message


def test_a_process_that_was_killed_for_memory_fails_though_the_app_outlived_it() -> None:
    check = check_memory(replace(RUNS, out_of_memory=True), Resources(memory=0.5))
    assert check.outcome is Outcome.FAILED
    assert "0.5 GB" in check.message
    assert check_memory(RUNS, Resources()).outcome is Outcome.PASSED


def test_start_longer_than_visitors_are_held_is_reported() -> None:
    assert check_port(8000, 0.3).outcome is Outcome.PASSED
    assert check_port(8000, 40.2).outcome is Outcome.WARNING
    assert gate_passed([check_port(8000, 40.2)])


def test_the_last_line_of_a_traceback_is_its_finding_and_counted() -> None:
    assert errors_in([*PYTHON, "GET / 200", *PYTHON]) == {"KeyError: 'x'": 2}
    assert errors_in(NODE) == {NODE[0]: 1}
    assert errors_in(["TypeError: said by somebody in prose", "KeyError: 'x'", "Error: not a trace"]) == {}


def test_tracebacks_of_a_network_out_of_reach_are_not_judged() -> None:
    away = [*PYTHON[:-1], "requests.exceptions.ConnectionError: Max retries exceeded with url: /"]
    assert check_log(PYTHON).outcome is Outcome.FAILED
    assert check_log(away).outcome is Outcome.NOT_JUDGED
    assert check_log([*away, *PYTHON]).outcome is Outcome.FAILED
    assert check_log(["all is well"]).outcome is Outcome.PASSED


FILE = FileState(10, "a")


@pytest.mark.parametrize(
    ("before", "after", "outcome"),
    [
        ({"a": FILE}, {"a": FILE}, Outcome.PASSED),
        ({"a": FILE}, {"a": FILE, "b": FILE}, Outcome.PASSED),
        ({"a": FILE}, {"a": FileState(12, "b")}, Outcome.PASSED),
        ({"a": FILE}, {"a": FileState(3, "b")}, Outcome.FAILED),
        ({"a": FILE}, {}, Outcome.FAILED),
        ({"cache/x.pid": FILE, "a/__pycache__/b.pyc": FILE, "db-wal": FILE, "tmp/x": FILE}, {}, Outcome.PASSED),
    ],
)
def test_missing_or_shrunk_file_after_a_restart_is_lost(
    before: dict[str, FileState], after: dict[str, FileState], outcome: Outcome
) -> None:
    assert check_files(before, after).outcome is outcome


def test_measures_warn_from_their_limits_on() -> None:
    assert check_idle(0.01, 1.0).outcome is Outcome.PASSED
    assert check_idle(0.9, 1.0).outcome is Outcome.WARNING
    assert check_memory_use(10, 100).outcome is Outcome.PASSED
    assert check_memory_use(90, 100).outcome is Outcome.WARNING
    assert check_term(0.1).outcome is Outcome.PASSED
    assert check_term(5.01).outcome is Outcome.FAILED


def test_only_failures_of_answers_are_excused() -> None:
    crawl = Check(CheckName.CRAWL, Outcome.FAILED, "a page failed.")
    term = Check(CheckName.SIGTERM, Outcome.FAILED, "it stayed.")
    assert as_not_judged(crawl, "no network.").outcome is Outcome.NOT_JUDGED
    assert as_not_judged(term, "no network.") == term
    assert as_not_judged(replace(crawl, outcome=Outcome.PASSED), "no network.").outcome is Outcome.PASSED


def test_checks_are_shown_in_one_order_and_bounded() -> None:
    many = Check(CheckName.LOG, Outcome.FAILED, "x", findings=tuple(f"{n} {'y' * 9999}" for n in range(99)))
    shown = in_order([many, Check(CheckName.CRAWL, Outcome.PASSED, "y")])
    assert [check.name for check in shown] == [CheckName.CRAWL, CheckName.LOG]
    assert len(shown[1].findings) == MAX_FINDINGS + 1
    assert max(map(len, shown[1].findings)) <= 500
    assert shown[1].findings[-1] == "… and 49 more"


def test_a_report_that_is_under_way_is_not_wanted_twice() -> None:
    report = QaReport(BuilderId("b"), 1)
    waiting = wanted(report, "token ci", NOW)
    assert (waiting.status, waiting.requested_by) == (ReportStatus.WAITING, "token ci")
    assert wanted(waiting, "token other", NOW) == waiting
    done = replace(waiting, status=ReportStatus.DONE, attempts=2)
    assert (wanted(done, "x", NOW).status, wanted(done, "x", NOW).attempts) == (ReportStatus.WAITING, 0)
