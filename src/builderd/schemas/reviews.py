"""Reviews (reports, acceptances of findings, SARIF), and QA results of a version."""

from __future__ import annotations

from typing import Annotated, Any
from urllib.parse import quote

from pydantic import Field

from builderd.qa.model import CheckName, Outcome, ReportStatus
from builderd.review import model as domain
from builderd.review.model import Severity
from builderd.schemas.shape import Shape, Time, UtcTime, View, checked_by

MAX_REASON = 1_000
FINGERPRINT = "^[0-9a-f]{32}$"


class Acceptance(View):
    """Acceptance of a finding: by whom, why, and until when (null: without end)."""

    reason: str
    accepted_by: str
    accepted_at: Time
    expires_at: Time | None


class Finding(View):
    """Finding of a review.

    ``line`` counts from 1, 0 for a whole file; ``path`` is empty for all files. Secrets in ``text`` are masked.

    ``acceptable`` by the deployer (a hold) or by an admin (a block). ``demoted``: its severity would be higher in
    code that the entrypoint reaches.
    """

    fingerprint: str
    rule: str
    severity: Severity
    path: str
    line: int
    text: str
    message: str
    advice: str
    demoted: bool
    acceptable: bool
    accepted: Acceptance | None


class Review(View):
    """Review of a version. ``passed``: no unaccepted block or hold. ``outdated``: the builder runs other code now.

    ``left_out`` counts omitted findings by rule; ``untold`` the omitted ones that block or hold.
    ``seconds`` is the duration of the review at ``reviewed_at``.
    """

    version: int
    passed: bool
    outdated: bool
    content_hash: str
    policy_hash: str
    reviewed_at: Time
    seconds: float
    files: int
    scanners: dict[str, str]
    findings: list[Finding]
    left_out: dict[str, int]
    untold: int


def _reason_error(reason: str) -> str | None:
    return None if reason.strip() else "must not be blank: say why the finding is right as it is"


class NewAcceptance(Shape):
    """Accept one finding of this builder, from now on and in later versions, for as long as its line stays the same."""

    fingerprint: Annotated[str, Field(pattern=FINGERPRINT)]
    reason: Annotated[str, checked_by(_reason_error), Field(min_length=1, max_length=MAX_REASON, pattern=r"\S")]
    expires: UtcTime | None = Field(
        default=None, strict=False, description="RFC 3339; needed for a finding that blocks."
    )


def review_of(report: domain.Report, verdict: domain.Verdict, version: int = 0, *, outdated: bool = False) -> Review:
    """Convert a report and its verdict to the response."""
    findings = [Finding.of(one, accepted=verdict.accepted.get(one.fingerprint)) for one in report.findings]
    return Review.of(report, version=version, passed=verdict.passed, outdated=outdated, findings=findings)


# SARIF 2.1.0 (https://docs.oasis-open.org/sarif/sarif/v2.1.0/)

SARIF = "application/sarif+json"
SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"
LEVELS = {Severity.BLOCK: "error", Severity.HOLD: "error", Severity.WARN: "warning"}
#: Name of the fingerprint algorithm.
FINGERPRINTS = "builderd/v1"


def sarif_of(review: Review, program: str) -> dict[str, Any]:
    """Convert a review to SARIF: one run, one result per finding; ``program`` is the service's version."""
    rules = sorted({finding.rule for finding in review.findings})
    driver = {"name": "builderd review", "version": program, "rules": [_rule(name, review) for name in rules]}
    run = {
        "tool": {"driver": driver},
        "columnKind": "unicodeCodePoints",
        "results": [_result(finding, rules.index(finding.rule)) for finding in review.findings],
        "properties": {
            "passed": review.passed,
            "contentHash": review.content_hash,
            "policyHash": review.policy_hash,
            "scanners": review.scanners,
            "leftOut": review.left_out,
        },
    }
    return {"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}


def _rule(name: str, review: Review) -> dict[str, Any]:
    finding = next(one for one in review.findings if one.rule == name)
    return {
        "id": name,
        "shortDescription": {"text": finding.message or name},
        "help": {"text": finding.advice or finding.message or name},
        "defaultConfiguration": {"level": LEVELS[finding.severity]},
    }


def _result(finding: Finding, index: int) -> dict[str, Any]:
    result: dict[str, Any] = {
        "ruleId": finding.rule,
        "ruleIndex": index,
        "level": LEVELS[finding.severity],
        "message": {"text": f"{finding.message}. {finding.advice}"},
        "partialFingerprints": {FINGERPRINTS: finding.fingerprint},
        "properties": {"severity": finding.severity.value, "demoted": finding.demoted},
    }
    if finding.path:
        result["locations"] = [{"physicalLocation": _location(finding)}]
    if finding.accepted is not None:
        result["suppressions"] = [{"kind": "external", "status": "accepted", "justification": finding.accepted.reason}]
    return result


def _location(finding: Finding) -> dict[str, Any]:
    location: dict[str, Any] = {"artifactLocation": {"uri": quote(finding.path), "uriBaseId": "%SRCROOT%"}}
    if finding.line:
        location["region"] = {"startLine": finding.line, "snippet": {"text": finding.text}}
    return location


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
