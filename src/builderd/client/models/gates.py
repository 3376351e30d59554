"""Reviews and QA."""

from __future__ import annotations

from datetime import datetime

from builderd.client.models.base import Model


class QaCheck(Model):
    """Result of one check. ``message`` has request and response; ``findings`` name pages or log lines.

    ``outcome``: ``passed``, ``warning`` (worth a look, not an error), ``failed``, or ``not_judged`` with the reason.
    """

    name: str
    outcome: str
    message: str
    seconds: float
    findings: list[str]


class QaScreenshot(Model):
    """Screenshot; ``url`` is the path of its PNG in this API."""

    name: str
    url: str


class Qa(Model):
    """QA results of one version.

    ``gate`` judged the live app before the call that deployed it was answered, and is all that ``qa_passed`` stands on;
    ``checks`` were made afterwards on a disposable copy without a network. ``status`` is that of the report:
    ``none``, ``waiting``, ``running``, ``done``, or ``dropped`` with the reason in ``note``.
    """

    version: int
    bundle_hash: str
    qa_passed: bool | None = None
    skipped: bool
    gate: list[QaCheck]
    gate_at: datetime | None = None
    status: str
    checks: list[QaCheck]
    screenshots: list[QaScreenshot]
    note: str
    requested_by: str
    started_at: datetime | None = None
    finished_at: datetime | None = None


class Acceptance(Model):
    """Acceptance of a finding: by whom, why, and until when (null: without end)."""

    reason: str
    accepted_by: str
    accepted_at: datetime
    expires_at: datetime | None = None


class Finding(Model):
    """Finding of a review.

    ``line`` counts from 1, 0 for a whole file; ``path`` is empty for all files. Secrets in ``text`` are masked.

    ``acceptable`` by the deployer (a hold) or by an admin (a block). ``demoted``: its severity would be higher in
    code that the entrypoint reaches.
    """

    fingerprint: str
    rule: str
    severity: str
    path: str
    line: int
    text: str
    message: str
    advice: str
    demoted: bool
    acceptable: bool
    accepted: Acceptance | None = None


class Review(Model):
    """Review of a version. ``passed``: no unaccepted block or hold. ``outdated``: the builder runs other code now.

    ``left_out`` counts omitted findings by rule; ``untold`` the omitted ones that block or hold.
    ``seconds`` is the duration of the review at ``reviewed_at``.
    """

    version: int
    passed: bool
    outdated: bool
    content_hash: str
    policy_hash: str
    reviewed_at: datetime
    seconds: float
    files: int
    scanners: dict[str, str]
    findings: list[Finding]
    left_out: dict[str, int]
    untold: int
