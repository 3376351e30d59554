"""QA results of a version."""

from __future__ import annotations

from builderd.domain.qa import CheckName, Outcome, ReportStatus
from builderd.schemas.v1.envelope import Success, Time
from builderd.schemas.v1.shape import View


class QaCheck(View):
    """Result of one check. ``message`` has request and response; ``findings`` name pages or log lines.

    ``outcome``: ``passed``, ``warning`` (worth a look, not an error), ``failed``, or ``not_judged`` with the reason.
    """

    name: CheckName
    outcome: Outcome
    message: str
    seconds: float
    findings: list[str]


class QaScreenshot(View):
    """Screenshot; ``url`` is the path of its PNG in this API."""

    name: str
    url: str


class Qa(View):
    """QA results of one version.

    ``gate`` judged the live app before the call that deployed it was answered, and is all that ``qa_passed`` stands on;
    ``checks`` were made afterwards on a disposable copy without a network. ``status`` is that of the report:
    ``none``, ``waiting``, ``running``, ``done``, or ``dropped`` with the reason in ``note``.
    """

    version: int
    bundle_hash: str
    qa_passed: bool | None
    skipped: bool
    gate: list[QaCheck]
    gate_at: Time | None
    status: ReportStatus
    checks: list[QaCheck]
    screenshots: list[QaScreenshot]
    note: str
    requested_by: str
    started_at: Time | None
    finished_at: Time | None


class QaAnswer(Success[Qa]):
    """Response with the QA results of a version."""
