"""Errors of the SDK. ``BuilderdError`` is the base of all.

``ApiError`` is an answer of the service: a class for each status, and below it one for each code that a program handles
by itself. ``NoAnswer`` is a call without a valid answer.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from builderd.client.models import Qa


class BuilderdError(Exception):
    """Base of the SDK's errors.

    ``request_id`` finds the call in the service's log. ``builder`` is the uuid of the builder that the error is about.
    ``next_step`` is a command to run next, "" if there is none.
    """

    _next: ClassVar[str] = ""

    def __init__(self, message: str, *, request_id: str = "", builder: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.request_id = request_id
        self.builder = builder

    @property
    def next_step(self) -> str:
        return self._next.format(builder=self.builder or "NAME")


class NoAnswer(BuilderdError):
    """No valid answer: no connection, one that broke off, or a server that is no builderd."""

    _next = "builderd doctor --client"


class TimedOut(NoAnswer):
    """The answer did not come within the call's ``timeout``. The service goes on with what it has begun."""


class ApiError(BuilderdError):
    """Answer of the service that refuses a call, or tells of a failure.

    ``errors`` are the reasons by dotted path of a ``validation_error``. ``retry_after`` is in seconds, None where
    time does not help.
    """

    status: int = 0

    def __init__(
        self,
        code: str,
        message: str,
        *,
        errors: Mapping[str, Sequence[str]] | None = None,
        data: Mapping[str, Any] | None = None,
        status: int | None = None,
        request_id: str = "",
        retry_after: float | None = None,
    ) -> None:
        data = data or {}
        uuid = data.get("uuid")
        super().__init__(message, request_id=request_id, builder=uuid if isinstance(uuid, str) else None)
        self.code = code
        self.errors: Mapping[str, Sequence[str]] = errors or {}
        self.data: Mapping[str, Any] = data
        self.status = status or type(self).status
        self.retry_after = retry_after

    def __str__(self) -> str:
        fields = "".join(f"\n  {path}: {reason}" for path, reasons in self.errors.items() for reason in reasons)
        return f"{self.code}: {self.message}{fields}"


class BadRequest(ApiError):
    """400: not what the API takes."""

    status = 400


class Unauthenticated(ApiError):
    """401: no valid token."""

    status = 401
    _next = "builderd login"


class Forbidden(ApiError):
    """403: the token lacks the scope."""

    status = 403
    _next = "builderd whoami"


class NotFound(ApiError):
    """404: no such thing, or it belongs to another tenant."""

    status = 404
    _next = "builderd ps"


class MethodNotAllowed(ApiError):
    """405: the service does not have this call; it may be older than this client."""

    status = 405
    _next = "builderd doctor --client"


class Conflict(ApiError):
    """409: the state of things does not allow it."""

    status = 409
    _next = "builderd status {builder}"


class NameTaken(Conflict):
    """409 ``name_taken``: ``builder`` is the one that has the name."""


class InvalidState(Conflict):
    """409 ``invalid_state``: the builder is in a state that does not allow the call."""


class PreconditionFailed(ApiError):
    """412: the file has changed since."""

    status = 412


class TooLarge(ApiError):
    """413: the message names the limit."""

    status = 413


class RangeNotSatisfiable(ApiError):
    """416: the file is shorter."""

    status = 416


class Unprocessable(ApiError):
    """422: a rule is broken, or a stage has failed."""

    status = 422


class ValidationFailed(Unprocessable):
    """422 ``validation_error``: ``errors`` has the reasons by dotted path. Nothing was stored."""


class DeploymentFailed(Unprocessable):
    """422: a stage of a deployment has failed. ``log_tail`` has the log's last lines, where they could be read."""

    _next = "builderd logs {builder}"

    def __init__(self, code: str, message: str, **details: Any) -> None:
        super().__init__(code, message, **details)
        self.log_tail: list[str] = []


class ReviewFailed(DeploymentFailed):
    """422 ``review_failed``: ``findings`` are the review's, as ``models.Finding`` has them."""

    _next = "builderd review {builder}"

    @property
    def findings(self) -> list[dict[str, Any]]:
        review = self.data.get("review")
        return list(review.get("findings", [])) if isinstance(review, dict) else []


class InstallFailed(DeploymentFailed):
    """422 ``install_failed``: the dependencies could not be installed; ``log_tail`` has the installer's last lines."""

    _next = "builderd logs {builder} --stream build"


class BuildFailed(DeploymentFailed):
    """422 ``build_failed``: the build command failed; ``log_tail`` has its last lines."""

    _next = "builderd logs {builder} --stream build"


class ReleaseFailed(DeploymentFailed):
    """422 ``release_failed``: the release command failed; ``log_tail`` has its last lines."""

    _next = "builderd logs {builder} --stream release"


class StartFailed(DeploymentFailed):
    """422 ``start_failed``: the app ended, or did not listen on its port."""


class QaFailed(DeploymentFailed):
    """422 ``qa_failed``: ``report`` has the checks, where it could be read."""

    _next = "builderd qa {builder}"

    def __init__(self, code: str, message: str, **details: Any) -> None:
        super().__init__(code, message, **details)
        self.report: Qa | None = None


class TooManyRequests(ApiError):
    """429: too much, for now."""

    status = 429


class RateLimited(TooManyRequests):
    """429 ``rate_limited``: too many calls, or too many that wait; ``retry_after`` says for how long."""


class QuotaExceeded(TooManyRequests):
    """429 ``quota_exceeded``: ``limits`` has the details of the limits that are reached."""

    _next = "builderd spending"

    @property
    def limits(self) -> Mapping[str, Any]:
        return self.data


class InternalError(ApiError):
    """500: a fault of the service, whose log has the ``request_id``."""

    status = 500


class Unavailable(ApiError):
    """503: a fault of the machine, or the service is not ready; ``retry_after`` says when to try again."""

    status = 503
    _next = "builderd doctor --client"


class NoCapacity(Unavailable):
    """503 ``no_capacity``: the machine has no room; the message says what is missing and what frees it."""

    _next = "builderd ps"


BY_CODE: dict[str, type[ApiError]] = {
    "name_taken": NameTaken,
    "invalid_state": InvalidState,
    "validation_error": ValidationFailed,
    "review_failed": ReviewFailed,
    "install_failed": InstallFailed,
    "build_failed": BuildFailed,
    "release_failed": ReleaseFailed,
    "start_failed": StartFailed,
    "qa_failed": QaFailed,
    "rate_limited": RateLimited,
    "quota_exceeded": QuotaExceeded,
    "no_capacity": NoCapacity,
    "machine_fault": Unavailable,
    "engine_unavailable": Unavailable,
    "bundle_lost": Unavailable,
    "store_unavailable": Unavailable,
    "backup_failed": Unavailable,
    "bad_request": BadRequest,
    "unauthenticated": Unauthenticated,
    "forbidden": Forbidden,
    "not_found": NotFound,
    "method_not_allowed": MethodNotAllowed,
    "conflict": Conflict,
    "precondition_failed": PreconditionFailed,
    "too_large": TooLarge,
    "range_not_satisfiable": RangeNotSatisfiable,
    "internal_error": InternalError,
}
BY_STATUS = {one.status: one for one in ApiError.__subclasses__()}


def error_of(
    envelope: Any, *, status: int | None = None, request_id: str = "", retry_after: float | None = None
) -> BuilderdError:
    """Return the error of a failure's envelope, ``NoAnswer`` for what is none. A stream's failure has no ``status``."""
    if not isinstance(envelope, dict) or not isinstance(envelope.get("code"), str):
        return NoAnswer(f"status {status}, and not an error of builderd: check the URL", request_id=request_id)
    code = envelope["code"]
    kind = BY_CODE.get(code) or BY_STATUS.get(status or 0, ApiError)
    return kind(
        code,
        str(envelope.get("message", "")),
        errors=envelope.get("errors"),
        data=envelope.get("data"),
        status=status,
        request_id=request_id,
        retry_after=retry_after,
    )


def error_in(status: int, headers: Mapping[str, str], content: bytes) -> BuilderdError:
    """Return the error of a response that is no success."""
    try:
        envelope = json.loads(content)
    except ValueError:
        envelope = None
    request_id, after = headers.get("x-request-id", ""), headers.get("retry-after", "")
    retry_after = float(after) if after.isascii() and after.isdecimal() else None
    return error_of(envelope, status=status, request_id=request_id, retry_after=retry_after)
