"""Answers: status, headers and the envelope, as values that can be sent now or kept for a retry."""

from __future__ import annotations

import json
import logging
import re
import uuid
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel
from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import Scope

from builderd.core.errors import BuilderdError, ValidationFailed
from builderd.review.model import ReviewFailed
from builderd.schemas.reviews import review_of
from builderd.schemas.shape import Failure

#: The status of each code of the contract.
STATUS = {
    "bad_request": 400,
    "unauthenticated": 401,
    "forbidden": 403,
    "not_found": 404,
    "method_not_allowed": 405,
    "name_taken": 409,
    "conflict": 409,
    "invalid_state": 409,
    "precondition_failed": 412,
    "too_large": 413,
    "range_not_satisfiable": 416,
    "validation_error": 422,
    "review_failed": 422,
    "install_failed": 422,
    "build_failed": 422,
    "release_failed": 422,
    "start_failed": 422,
    "qa_failed": 422,
    "rate_limited": 429,
    "quota_exceeded": 429,
    "internal_error": 500,
    "no_capacity": 503,
    "engine_unavailable": 503,
    "bundle_lost": 503,
    "store_unavailable": 503,
    "machine_fault": 503,
    "backup_failed": 503,
}
#: Headers of every answer: it holds secrets and speaks of now, so no cache may keep it, no browser guess at its type.
GUARDS = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP answer; ``body`` is the whole envelope."""

    status: int
    body: Mapping[str, Any]
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        return self.status < 400

    @property
    def is_final(self) -> bool:
        """Return False for a 503: a retry looks again."""
        return self.status != 503

    def response(self, media_type: str = "application/json") -> Response:
        """Return the answer as a response, ready to be sent; ``media_type`` must be a JSON type."""
        text = json.dumps(self.body, ensure_ascii=False, separators=(",", ":"))
        return Response(text, self.status, dict(self.headers), media_type=media_type)


def stamped(scope: Scope, answer: Answer) -> Response:
    """Return the answer with the headers that every answer has, for what is answered before the request log."""
    response = answer.response()
    response.headers.update({HEADER: id_of(scope), **GUARDS})
    return response


def success(envelope: BaseModel, status: int = 200, headers: Mapping[str, str] | None = None) -> Answer:
    """Return a successful answer with this envelope."""
    return Answer(status, envelope.model_dump(mode="json"), headers or {})


def failure(error: BuilderdError, request_id: str | None = None) -> Answer:
    """Return the contract's answer for this error. A ``request_id`` goes into the message: the log knows more."""
    errors = error.errors if isinstance(error, ValidationFailed) else None
    data = dict(error.data)
    if isinstance(error, ReviewFailed) and error.found is not None:
        data["review"] = review_of(*error.found, version=data["version"]).model_dump(mode="json")
    message = error.message if request_id is None else f"{error.message} (request id {request_id})"
    body = Failure(code=error.code, message=message, errors=errors, data=data or None)
    headers = {}
    if error.retry_after is not None:
        headers["Retry-After"] = str(error.retry_after)
    if error.code == "unauthenticated":
        headers["WWW-Authenticate"] = 'Bearer realm="builderd"'
    return Answer(STATUS[error.code], body.model_dump(mode="json"), headers)


#: The id of the request that is being answered; empty outside of one.
request_id: ContextVar[str] = ContextVar("request_id", default="")

HEADER = "X-Request-Id"
#: An id from outside stands in log lines and headers: nothing in it may break out of them.
ACCEPTED = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")


class RequestIdFilter(logging.Filter):
    """Gives every record a ``request_id`` for the formatter: the id, or ``-`` outside of a request."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.request_id = request_id.get() or "-"
        return True


def id_of(scope: Scope) -> str:
    """Return the id that the caller gave, or a new one."""
    given = Headers(scope=scope).get(HEADER, "")
    return given if ACCEPTED.fullmatch(given) else str(uuid.uuid4())


#: Every call of the API's first version begins so.
PREFIX = "/api/v1"
