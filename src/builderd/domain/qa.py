"""QA results of a version: the gate's checks of the live app, and the report's checks of a disposable copy.

The gate sends one request to the live app before the call that deployed it is answered. The report follows in the
background. Both are stored with the version, so that an old result never stands for new code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum

from builderd.domain.ids import BuilderId, DiskId

#: Findings kept per check, and characters of each.
MAX_FINDINGS, MAX_FINDING = 50, 500
#: Attempts at a report that a stop of the service interrupted.
MAX_ATTEMPTS = 2


class Outcome(StrEnum):
    PASSED = "passed"
    #: Worth a look, not an error.
    WARNING = "warning"
    FAILED = "failed"
    #: Not determined; the message says why.
    NOT_JUDGED = "not_judged"


class CheckName(StrEnum):
    """Names of checks, in display order."""

    # The gate
    PORT = "port"
    ANSWER = "answer"
    ALIVE = "alive"
    MEMORY = "memory"
    #: A job ended with exit code 0.
    EXIT = "exit"
    # The report, on a copy
    COPY = "copy"
    CRAWL = "crawl"
    RESTART = "restart"
    LINKS = "links"
    ROBOTS = "robots"
    OPENAPI = "openapi"
    BROWSER = "browser"
    CONSOLE = "console"
    ACCESSIBILITY = "accessibility"
    STAYS_UP = "stays_up"
    MEMORY_USE = "memory_use"
    IDLE_CPU = "idle_cpu"
    LOG = "log"
    SIGTERM = "sigterm"
    FILES = "files"


ORDER = {name: index for index, name in enumerate(CheckName)}


@dataclass(frozen=True, slots=True)
class Check:
    """Result of one check. ``message`` has the request and the response; ``findings`` name pages or log lines."""

    name: CheckName
    outcome: Outcome
    message: str
    seconds: float = 0.0
    findings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Screenshot:
    """Screenshot in PNG; ``name`` is ``desktop`` or ``phone``, ``width`` and ``height`` in pixels."""

    name: str
    width: int
    height: int
    png: bytes


class ReportStatus(StrEnum):
    #: No report is made of this version (yet).
    NONE = "none"
    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"
    #: It could not be made or was interrupted; ``note`` says why.
    DROPPED = "dropped"


@dataclass(frozen=True, slots=True)
class QaReport:
    """QA results of one version. ``gate`` is empty until the gate has run.

    ``copy_disk`` is the disposable copy's disk, set before it is created and cleared after its removal; ``owner`` the
    service that works on it. ``screenshots`` are the names of the stored ones.
    """

    builder_id: BuilderId
    version: int
    status: ReportStatus = ReportStatus.NONE
    gate: tuple[Check, ...] = ()
    gate_at: datetime | None = None
    checks: tuple[Check, ...] = ()
    screenshots: tuple[str, ...] = ()
    note: str = ""
    requested_by: str = ""
    requested_at: datetime | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    attempts: int = 0
    owner: str = ""
    copy_disk: DiskId | None = None

    @property
    def is_open(self) -> bool:
        """True while the report is not finished."""
        return self.status in (ReportStatus.WAITING, ReportStatus.RUNNING)


def wanted(report: QaReport, by: str, now: datetime) -> QaReport:
    """Return the results with a report requested; unchanged while one is open."""
    if report.is_open:
        return report
    return replace(
        report,
        status=ReportStatus.WAITING,
        note="",
        requested_by=by,
        requested_at=now,
        started_at=None,
        finished_at=None,
        attempts=0,
    )


def gate_passed(gate: Sequence[Check]) -> bool:
    """Return True if no check of the gate failed."""
    return all(check.outcome is not Outcome.FAILED for check in gate)


def gate_verdict(gate: Sequence[Check]) -> bool | None:
    """Return whether the gate passed; None if nothing failed, but something could not be judged."""
    if any(check.outcome is Outcome.NOT_JUDGED for check in gate) and gate_passed(gate):
        return None
    return gate_passed(gate)


def gate_doubt(gate: Sequence[Check]) -> str:
    """Return the messages of the checks that could not be judged."""
    return "\n".join(check.message for check in gate if check.outcome is Outcome.NOT_JUDGED)


def gate_failure(gate: Sequence[Check]) -> str:
    """Return the messages of the failed checks."""
    return "\n".join(check.message for check in gate if check.outcome is Outcome.FAILED)


def in_order(checks: Sequence[Check]) -> tuple[Check, ...]:
    """Return the checks in display order, each cut to the stored size."""
    return tuple(sorted((_cut(check) for check in checks), key=lambda check: ORDER[check.name]))


def _cut(check: Check) -> Check:
    left_out = len(check.findings) - MAX_FINDINGS
    kept = tuple(shorten(finding, MAX_FINDING) for finding in check.findings[:MAX_FINDINGS])
    if left_out > 0:
        kept = (*kept, f"… and {left_out} more")
    return replace(check, seconds=round(check.seconds, 3), findings=kept)


def shorten(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def pluralize(number: int, noun: str) -> str:
    """Return ``1 page``, ``2 pages``."""
    return f"{number} {noun}{'' if number == 1 else 's'}"
