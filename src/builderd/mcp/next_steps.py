"""Next steps of failures by their code, in the words of the tools. Pure."""

from __future__ import annotations

from builderd.client.errors import ApiError, BuilderdError, TimedOut

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
