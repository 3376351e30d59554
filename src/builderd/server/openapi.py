"""The OpenAPI document: every status that a call can be answered with, and what is in it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from builderd import __version__
from builderd.core.resources import Resources
from builderd.schemas.shape import Failure

SCHEMAS = "#/components/schemas/"
#: Shapes of requests, by name. The framework does not see them, since the bodies are read and limited apart from it.
_REQUESTS: dict[str, type[BaseModel]] = {}

FAILURES = {
    400: "`bad_request`: the body is not JSON, or not an object.",
    401: "`unauthenticated`: no token, or an unknown, expired or revoked one.",
    403: "`forbidden`: the token lacks the scope.",
    404: "`not_found`: no such thing among yours.",
    409: "`name_taken`, `conflict` or `invalid_state`: the message says which, and what to do.",
    412: "`precondition_failed`: what the call was made to depend on is not so.",
    413: "`too_large`: the message says the limit.",
    416: "`range_not_satisfiable`: there are no such bytes; `data.size` says how many there are.",
    422: "`validation_error`: `errors` says which fields, and why; nothing was stored.",
    429: "`quota_exceeded` or `rate_limited`: the message says which limit.",
    500: "`internal_error`: a fault of the service; see its log.",
    503: "`engine_unavailable`, `bundle_lost`, `store_unavailable`, `machine_fault`, `no_capacity` or `backup_failed`: "
    "the machine cannot do it now; the message says why.",
}
STAGES = (
    " `review_failed` (`data.review` has the findings), `install_failed`, `build_failed`, `release_failed`,"
    " `start_failed` or (with `require_qa`) `qa_failed`: the builder is kept in `failed`, `data.uuid` names it."
)

#: The groups of calls, in the order in which they are shown.
BUILDERS, WATCHING, CREDENTIALS = "Builders", "Logs, events and commands", "Credentials"
FILES, GATES = "Files", "Gates"
BACKUPS, SPENDING, TOKENS, SERVICE = "Backups", "Spending", "Tokens", "The service itself"
TAGS = (
    {"name": BUILDERS, "description": "From code to a live URL, and its life from then on."},
    {"name": WATCHING, "description": "What an app says, what happens to it, and commands run beside it."},
    {"name": FILES, "description": "What lies on a builder's disk, and code too large for JSON."},
    {"name": CREDENTIALS, "description": "Secrets, handed to the builders that ask for them and never read back."},
    {"name": GATES, "description": "Whether a version is fit to run, and what is amiss with it."},
    {"name": BACKUPS, "description": "Copies of a builder's files at one moment, kept apart from it."},
    {"name": SPENDING, "description": "What it costs, and what it may cost."},
    {"name": TOKENS, "description": "API tokens of your tenant."},
    {"name": SERVICE, "description": "For who operates it."},
)

Parameter = dict[str, Any]

PREFER: Parameter = {
    "name": "Prefer",
    "in": "header",
    "description": "`respond-async` answers 202 at once (RFC 7240).",
    "schema": {"type": "string"},
    "example": "respond-async",
}
IDEMPOTENCY_KEY: Parameter = {
    "name": "Idempotency-Key",
    "in": "header",
    "description": "Makes a retry safe for 24 hours: the same key and body give the first answer again.",
    "schema": {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[!-~]([ -~]*[!-~])?$"},
}
LAST_EVENT_ID: Parameter = {
    "name": "Last-Event-ID",
    "in": "header",
    "description": "With `follow`: go on after this event.",
    "schema": {"type": "string"},
}
LOCATION = {"Location": {"description": "Where the builder is found.", "schema": {"type": "string"}}}
REQUEST_ID = {"X-Request-Id": {"description": "Names this call in the service's log.", "schema": {"type": "string"}}}
RATE = {
    "RateLimit": {"description": "Calls that are left, seconds until all are back.", "schema": {"type": "string"}},
    "RateLimit-Policy": {"description": "Calls that a token may make in a minute.", "schema": {"type": "string"}},
}
RETRY_AFTER = {"Retry-After": {"description": "Seconds to wait.", "schema": {"type": "integer"}}}


def failures(*statuses: int, stages: bool = False) -> dict[int | str, dict[str, Any]]:
    """The documentation of these failures, and of those that any call may meet."""
    # Calls that need a token are rate-limited too.
    limited = {429} if 401 in statuses else set()
    documented: dict[int | str, dict[str, Any]] = {
        status: {"model": Failure, "description": FAILURES[status]}
        for status in sorted({*statuses, *limited, 500, 503})
    }
    if stages:
        documented[422]["description"] += STAGES
    return documented


def answers(
    status: int, model: type[BaseModel], text: str, *failed: int, later: str = "", stages: bool = False, **more: Any
) -> dict[int | str, dict[str, Any]]:
    """Document one answer in JSON, the 202 in its place (``later``), and failures: those of a call with a token."""
    documented = answer(status, model, text, **more)
    if later:
        documented |= answer(202, model, later, headers=LOCATION)
    return documented | failures(401, 403, *failed, stages=stages)


def answer(status: int, model: type[BaseModel], description: str, **more: Any) -> dict[int | str, dict[str, Any]]:
    """The documentation of one answer in JSON."""
    return {status: {"model": model, "description": description, **more}}


def body_of(shape: type[BaseModel], example: Mapping[str, Any], *, required: bool = True) -> dict[str, Any]:
    """The documentation of a body that ``bodies.json_body`` reads, or ``optional_json_body`` where it is not required.

    The example is one that works as it stands.
    """
    _REQUESTS[shape.__name__] = shape
    media = {"schema": {"$ref": f"{SCHEMAS}{shape.__name__}"}, "example": example}
    return {"requestBody": {"required": required, "content": {"application/json": media}}}


def events(description: str) -> dict[str, Any]:
    """The documentation of an event stream."""
    # Without a type: what reads the document takes the stream for a text, or for the events in it.
    return {"text/event-stream": {"schema": {"description": description}}}


def install(app: FastAPI, maximum: Resources) -> None:
    """Have the app describe itself exactly, with the bounds that its operator set."""

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _document(app, maximum)
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]


def _document(app: FastAPI, maximum: Resources) -> dict[str, Any]:
    document = get_openapi(
        title="builderd",
        version=__version__,
        summary="One call turns code into a running, isolated app with a live URL.",
        routes=app.routes,
        tags=list(TAGS),
    )
    schemas = document["components"]["schemas"]
    schemas.update(_request_schemas(maximum))
    for path in document["paths"].values():
        for operation in path.values():
            _complete(operation)
    # The framework's own shapes of errors, which this service never answers.
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    return document


def _request_schemas(maximum: Resources) -> Mapping[str, Any]:
    pairs = [(_REQUESTS[name], "validation") for name in sorted(_REQUESTS)]
    _, found = models_json_schema(pairs, ref_template=f"{SCHEMAS}{{model}}")  # type: ignore[arg-type]
    schemas: dict[str, Any] = found["$defs"]
    for name, field in schemas["Resources"]["properties"].items():
        field["maximum"] = getattr(maximum, name)
    return schemas


def _complete(operation: dict[str, Any]) -> None:
    summary, _, _ = operation["description"].partition("\n")
    operation["summary"] = summary.removesuffix(".")
    answers = operation["responses"]
    if "HTTPValidationError" in str(answers.get("422")):
        del answers["422"]
    counted = RATE if "429" in answers else {}
    for status, documented in answers.items():
        waits = RETRY_AFTER if status in ("409", "429", "503") else {}
        documented["headers"] = {**REQUEST_ID, **counted, **waits, **documented.get("headers", {})}
