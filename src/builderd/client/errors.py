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
    ``next_step`` is a command to run next, "" if there is none. ``note`` says how things are since, for people.
    """

    _next: ClassVar[str] = ""

    def __init_subclass__(cls, next_step: str | None = None) -> None:
        cls._next = cls._next if next_step is None else next_step

    def __init__(self, message: str, *, request_id: str = "", builder: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.request_id = request_id
        self.builder = builder
        self.note = ""

    @property
    def next_step(self) -> str:
        return self._next.format(builder=self.builder or "NAME")


class NoAnswer(BuilderdError, next_step="builderd doctor --client"):
    """No valid answer: no connection, one that broke off, or a server that is no builderd."""


class TimedOut(NoAnswer):
    """The answer did not come within the call's ``timeout``. The service goes on with what it has begun."""


#: Classes of the answers: by code, and by status for codes of later services.
BY_CODE: dict[str, type[ApiError]] = {}
BY_STATUS: dict[int, type[ApiError]] = {}


class ApiError(BuilderdError):
    """Answer of the service that refuses a call, or tells of a failure.

    ``errors`` are the reasons by dotted path of a ``validation_error``. ``retry_after`` is in seconds, None where
    time does not help.
    """

    status: int = 0

    def __init_subclass__(cls, status: int | None = None, codes: str = "", next_step: str | None = None) -> None:
        super().__init_subclass__(next_step)
        BY_CODE.update(dict.fromkeys(codes.split(), cls))
        if status is not None:
            cls.status = status
            BY_STATUS[status] = cls

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


class BadRequest(ApiError, status=400, codes="bad_request"):
    """400: not what the API takes."""


class Unauthenticated(ApiError, status=401, codes="unauthenticated", next_step="builderd login"):
    """401: no valid token."""


class Forbidden(ApiError, status=403, codes="forbidden", next_step="builderd whoami"):
    """403: the token lacks the scope."""


class NotFound(ApiError, status=404, codes="not_found", next_step="builderd ps"):
    """404: no such thing, or it belongs to another tenant."""


class MethodNotAllowed(ApiError, status=405, codes="method_not_allowed", next_step="builderd doctor --client"):
    """405: the service does not have this call; it may be older than this client."""


class Conflict(ApiError, status=409, codes="conflict", next_step="builderd status {builder}"):
    """409: the state of things does not allow it."""


class NameTaken(Conflict, codes="name_taken"):
    """409 ``name_taken``: ``builder`` is the one that has the name."""


class InvalidState(Conflict, codes="invalid_state"):
    """409 ``invalid_state``: the builder is in a state that does not allow the call."""


class PreconditionFailed(ApiError, status=412, codes="precondition_failed"):
    """412: the file has changed since."""


class TooLarge(ApiError, status=413, codes="too_large"):
    """413: the message names the limit."""


class RangeNotSatisfiable(ApiError, status=416, codes="range_not_satisfiable"):
    """416: the file is shorter."""


class Unprocessable(ApiError, status=422):
    """422: a rule is broken, or a stage has failed."""


class ValidationFailed(Unprocessable, codes="validation_error"):
    """422 ``validation_error``: ``errors`` has the reasons by dotted path. Nothing was stored."""


class DeploymentFailed(Unprocessable, next_step="builderd logs {builder}"):
    """422: a stage of a deployment has failed. ``log_tail`` has the log's last lines, where they could be read."""

    def __init__(self, code: str, message: str, **details: Any) -> None:
        super().__init__(code, message, **details)
        self.log_tail: list[str] = []

    @property
    def stage(self) -> str:
        """Stage that failed: ``review``, ``install``, ``build``, ``release``, ``start`` or ``qa``."""
        return self.code.removesuffix("_failed")


class ReviewFailed(DeploymentFailed, codes="review_failed", next_step="builderd review {builder}"):
    """422 ``review_failed``: ``findings`` are the review's, as ``models.Finding`` has them."""

    @property
    def findings(self) -> list[dict[str, Any]]:
        review = self.data.get("review")
        return list(review.get("findings", [])) if isinstance(review, dict) else []


class InstallFailed(DeploymentFailed, codes="install_failed", next_step="builderd logs {builder} --stream build"):
    """422 ``install_failed``: the dependencies could not be installed; ``log_tail`` has the installer's last lines."""


class BuildFailed(DeploymentFailed, codes="build_failed", next_step="builderd logs {builder} --stream build"):
    """422 ``build_failed``: the build command failed; ``log_tail`` has its last lines."""


class ReleaseFailed(DeploymentFailed, codes="release_failed", next_step="builderd logs {builder} --stream release"):
    """422 ``release_failed``: the release command failed; ``log_tail`` has its last lines."""


class StartFailed(DeploymentFailed, codes="start_failed"):
    """422 ``start_failed``: the app ended, or did not listen on its port."""


class QaFailed(DeploymentFailed, codes="qa_failed", next_step="builderd qa {builder}"):
    """422 ``qa_failed``: ``report`` has the checks, where it could be read."""

    def __init__(self, code: str, message: str, **details: Any) -> None:
        super().__init__(code, message, **details)
        self.report: Qa | None = None

    @property
    def next_step(self) -> str:
        # The version before serves, and is the one whose verdict is shown without a number.
        return f"{super().next_step} --version {self.data['version']}" if "version" in self.data else super().next_step


class TooManyRequests(ApiError, status=429):
    """429: too much, for now."""


class RateLimited(TooManyRequests, codes="rate_limited"):
    """429 ``rate_limited``: too many calls, or too many that wait; ``retry_after`` says for how long."""


class QuotaExceeded(TooManyRequests, codes="quota_exceeded", next_step="builderd spending"):
    """429 ``quota_exceeded``: ``limits`` has the details of the limits that are reached."""

    @property
    def limits(self) -> Mapping[str, Any]:
        return self.data


class InternalError(ApiError, status=500, codes="internal_error"):
    """500: a fault of the service, whose log has the ``request_id``."""


class Unavailable(
    ApiError,
    status=503,
    codes="machine_fault engine_unavailable bundle_lost store_unavailable backup_failed",
    next_step="builderd doctor --client",
):
    """503: a fault of the machine, or the service is not ready; ``retry_after`` says when to try again."""


class NoCapacity(Unavailable, codes="no_capacity", next_step="builderd ps"):
    """503 ``no_capacity``: the machine has no room; the message says what is missing and what frees it."""


def error_of(
    envelope: Any, *, status: int | None = None, request_id: str = "", retry_after: float | None = None
) -> BuilderdError:
    """Return the error of a failure's envelope, ``NoAnswer`` for what is none. A stream's failure has no ``status``."""
    if not isinstance(envelope, dict) or not isinstance(envelope.get("code"), str):
        return NoAnswer(f"status {status}, and not an error of builderd: check the URL", request_id=request_id)
    kind = BY_CODE.get(envelope["code"]) or BY_STATUS.get(status or 0, ApiError)
    return kind(
        envelope["code"],
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
