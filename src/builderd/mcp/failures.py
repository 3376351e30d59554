"""Failures of the API as results with the next step, instead of protocol errors. Pure."""

from __future__ import annotations

from builderd.client import models
from builderd.client.errors import (
    ApiError,
    BuilderdError,
    DeploymentFailed,
    QaFailed,
    ReviewFailed,
    TimedOut,
)
from builderd.mcp.results import Failure, Finding, check_lines, checks_of, last_part, mark

STAGES = {f"{stage}_failed": stage for stage in ("review", "install", "build", "release", "start", "qa")}
#: Messages of the stages. The service's own quote the app, the installer or the code.
MESSAGES = {
    "review_failed": "The review found code that must not run: see findings.",
    "install_failed": "The dependencies could not be installed: app_output says why.",
    "build_failed": "The build command failed: app_output has its last lines.",
    "release_failed": "The release command failed: app_output has its last lines.",
    "start_failed": "The app did not come up: app_output says why, with its last lines.",
    "qa_failed": "The app came up, but failed the QA gate: see checks and app_output.",
}


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
        checks=checks_of(error.report.gate) if isinstance(error, QaFailed) and error.report else [],
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


AGAIN = "then call deploy_code again if it never ran, or redeploy if an older version serves."
NEXT = {
    "review_failed": "Change the code that findings with severity block or hold name (a person may accept a hold), "
    f"{AGAIN}",
    "install_failed": "Read app_output (more: get_logs with stream=build), correct requirements.txt or package.json, "
    f"{AGAIN}",
    "build_failed": "Read app_output (more: get_logs with stream=build), correct the code or the build command, "
    f"{AGAIN}",
    "release_failed": "Read app_output (more: get_logs with stream=release), correct the code or the release command, "
    f"{AGAIN}",
    "start_failed": "Read app_output (more: get_logs). The app must listen on 0.0.0.0:$PORT and must not end. "
    f"Correct it, {AGAIN}",
    "qa_failed": f"Read the checks and app_output (more: get_qa_report), correct the app, {AGAIN}",
    "name_taken": "A deployment with other files has this name: give it these files with redeploy, or choose another "
    "name.",
    "not_found": "Call list_deployments to see the names.",
    "validation_error": "Correct the arguments that reasons names and call the tool again. Nothing was stored.",
    "unauthenticated": "The API token is unknown, expired or revoked: ask the user for another.",
    "forbidden": "The API token lacks the scope: ask the user. Do not try to work around it.",
    "rate_limited": "Wait for retry_after_seconds, then call the tool again.",
    "quota_exceeded": "A quota or spending cap is reached: stop what is not needed (get_spending), or ask the user.",
    "no_capacity": "The machine has no room now. Wait, or ask the user to stop something.",
    "invalid_state": "Call get_deployment to see the state; start_deployment starts a stopped one.",
    "conflict": "Wait, then call the tool again. With idempotency_key: take a new key for other arguments.",
    "too_large": "Send large code by create_upload_link and its upload_id.",
}
LATER = (
    "Wait for retry_after_seconds (or 10 s), then call the tool again: deploy_code never makes a second deployment of "
    "the same files."
)


def code_of(error: BuilderdError) -> str:
    """Return the code of an error: the API's, or that of a call without an answer."""
    if isinstance(error, ApiError):
        return error.code
    return "timed_out" if isinstance(error, TimedOut) else "no_answer"
