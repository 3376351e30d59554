"""A QA report in formats that other tools read. Pure.

JUnit XML as CI servers take it (https://github.com/testmoapp/junitxml), CTRF 0.0.0 (https://ctrf.io/docs/specification).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import datetime
from typing import Any
from xml.sax.saxutils import escape, quoteattr

from builderd.domain.qa import Check, Outcome, QaReport

JUNIT_MEDIA = "application/xml"
CTRF_MEDIA = "application/vnd.ctrf+json"
#: Characters that XML 1.0 cannot contain, not even as character references.
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_CTRF_STATUS = {
    Outcome.PASSED: "passed",
    Outcome.WARNING: "passed",
    Outcome.FAILED: "failed",
    Outcome.NOT_JUDGED: "skipped",
}


def make_junit(report: QaReport) -> str:
    """Return the report as JUnit XML: a suite for the gate, one for the report. Checks not judged are skipped."""
    suites = "\n".join(_suite(name, checks) for name, checks in _suites(report))
    tests, failures, skipped = _counts([check for _, checks in _suites(report) for check in checks])
    head = f'<testsuites name="builderd QA" tests="{tests}" failures="{failures}" skipped="{skipped}" errors="0">'
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{head}\n{suites}\n</testsuites>\n'


def _suites(report: QaReport) -> Iterator[tuple[str, tuple[Check, ...]]]:
    yield "gate", report.gate
    yield "report", report.checks


def _counts(checks: list[Check]) -> tuple[int, int, int]:
    failed = sum(check.outcome is Outcome.FAILED for check in checks)
    skipped = sum(check.outcome is Outcome.NOT_JUDGED for check in checks)
    return len(checks), failed, skipped


def _suite(name: str, checks: tuple[Check, ...]) -> str:
    tests, failures, skipped = _counts(list(checks))
    seconds = sum(check.seconds for check in checks)
    counts = f'tests="{tests}" failures="{failures}" skipped="{skipped}" errors="0" time="{seconds:.3f}"'
    cases = "\n".join(_case(name, check) for check in checks)
    return f'  <testsuite name="{name}" {counts}>\n{cases}\n  </testsuite>'


def _case(suite: str, check: Check) -> str:
    opening = f'    <testcase classname="qa.{suite}" name="{check.name}" time="{check.seconds:.3f}"'
    message = quoteattr(_xml(check.message))
    said = escape(_xml("\n".join((check.message, *check.findings))))
    match check.outcome:
        case Outcome.FAILED:
            return f"{opening}>\n      <failure message={message}>{said}</failure>\n    </testcase>"
        case Outcome.NOT_JUDGED:
            return f"{opening}>\n      <skipped message={message}/>\n    </testcase>"
        case _:
            return f"{opening}>\n      <system-out>{said}</system-out>\n    </testcase>"


def _xml(text: str) -> str:
    return _NOT_XML.sub("\ufffd", text)


def make_ctrf(report: QaReport) -> str:
    """Return the report as CTRF JSON; times are in milliseconds."""
    checks = [check for _, suite in _suites(report) for check in suite]
    tests, failed, skipped = _counts(checks)
    summary = {
        "tests": tests,
        "passed": tests - failed - skipped,
        "failed": failed,
        "skipped": skipped,
        "pending": 0,
        "other": 0,
        "start": _milliseconds(report.gate_at),
        "stop": _milliseconds(report.finished_at or report.gate_at),
    }
    cases = [_ctrf(name, check) for name, suite in _suites(report) for check in suite]
    document = {"tool": {"name": "builderd-qa"}, "summary": summary, "tests": cases}
    return json.dumps({"reportFormat": "CTRF", "specVersion": "0.0.0", "results": document}, ensure_ascii=False)


def _ctrf(suite: str, check: Check) -> dict[str, Any]:
    case = {
        "name": check.name.value,
        "status": _CTRF_STATUS[check.outcome],
        "duration": round(check.seconds * 1000),
        "suite": [suite],
        "message": check.message,
        "rawStatus": check.outcome.value,
    }
    return {**case, "trace": "\n".join(check.findings)} if check.findings else case


def _milliseconds(time: datetime | None) -> int:
    return round(time.timestamp() * 1000) if time else 0
