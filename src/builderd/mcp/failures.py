"""Failures of the API as results with the next step, instead of protocol errors. Pure."""

from __future__ import annotations

from builderd.client import models
from builderd.client.errors import (
    ApiError,
    BuilderdError,
    DeploymentFailed,
    QaFailed,
    ReviewFailed,
)
from builderd.mcp.next_steps import LATER, MESSAGES, NEXT, code_of
from builderd.mcp.results import Check, Failure, Finding, check_lines, last_part, mark

STAGES = {f"{stage}_failed": stage for stage in ("review", "install", "build", "release", "start", "qa")}


def failure_of(error: BuilderdError) -> Failure:
    """Return the failure that a model reads: the stage, the reason, what the app wrote, and the next step."""
    if not isinstance(error, ApiError):
        return Failure(code=code_of(error), message=error.message, next_step=LATER, request_id=error.request_id)
    message, quoted = _parts(error)
    return Failure(
        code=error.code,
        message=message,
        next_step=NEXT.get(error.code, LATER if error.status >= 500 else "Read the message."),
        stage=STAGES.get(error.code),
        deployment=error.builder,
        reasons={path: list(reasons) for path, reasons in error.errors.items()},
        findings=_findings(error),
        checks=[Check.of(one) for one in error.report.gate] if isinstance(error, QaFailed) and error.report else [],
        app_output=mark(last_part(quoted).text, "output") if quoted else "",
        retry_after_seconds=error.retry_after,
        request_id=error.request_id,
    )


def failure_of_state(state: models.BuilderState, version: models.Version | None, log_tail: str) -> Failure:
    """Return the failure of a builder that was found failed, as its own call was answered."""
    code = (version.failure_code if version else None) or "start_failed"
    quoted = "\n".join(part for part in (state.status_reason, log_tail) if part)
    return Failure(
        code=code,
        message=MESSAGES.get(code, "The deployment has failed: app_output says why."),
        next_step=NEXT.get(code, LATER),
        stage=STAGES.get(code),
        deployment=state.uuid,
        app_output=mark(last_part(quoted).text, "output") if quoted else "",
    )


def _parts(error: ApiError) -> tuple[str, str]:
    """Return a message of the service's own, and what quotes the app: the reason, the log, the checks."""
    if not isinstance(error, DeploymentFailed):
        return error.message, ""
    lines = [error.message, *(line for line in error.log_tail if line not in error.message)]
    if isinstance(error, QaFailed) and error.report:
        lines += [line for check in error.report.gate for line in check_lines(check)]
    if isinstance(error, ReviewFailed):
        lines = [error.message] + [f"{one.get('path')}:{one.get('line')}: {one.get('text')}" for one in error.findings]
    message = MESSAGES.get(error.code, "A stage of the deployment failed: app_output says why.")
    return message, "\n".join(line for line in lines if line)


def _findings(error: ApiError) -> list[Finding]:
    if not isinstance(error, ReviewFailed):
        return []
    names = ("rule", "severity", "path", "line", "message", "advice", "fingerprint")
    return [
        Finding(
            **{name: one.get(name, 0 if name == "line" else "") for name in names}, accepted=bool(one.get("accepted"))
        )
        for one in error.findings
    ]
