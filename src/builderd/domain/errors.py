"""Errors that a user can meet: one class per error code.

Services and the reconciler raise these; only the HTTP door turns them into status numbers.
The codes are those of the HTTP contract.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from builderd.domain.reviews import Report, Verdict


class BuilderdError(Exception):
    """Base of all coded errors.

    ``message`` says what is wrong and what to do. ``data`` has details for programs, such as the builder's uuid.
    ``retry_after`` is in whole seconds, where waiting helps.
    """

    code: ClassVar[str] = "internal_error"

    def __init__(
        self,
        message: str,
        *,
        data: Mapping[str, Any] | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.data: dict[str, Any] = dict(data or {})
        self.retry_after = retry_after


class BadRequest(BuilderdError):
    """The body is not JSON, or not an object."""

    code = "bad_request"


class Unauthenticated(BuilderdError):
    """No token, or an unknown, expired or revoked one."""

    code = "unauthenticated"


class Forbidden(BuilderdError):
    """The token lacks the scope."""

    code = "forbidden"


class NotFound(BuilderdError):
    """The tenant has no such resource."""

    code = "not_found"


class NameTaken(BuilderdError):
    """The tenant has a builder of that name; ``data.uuid`` is its id."""

    code = "name_taken"


class Conflict(BuilderdError):
    """A retry key is in flight, or was used for another body."""

    code = "conflict"


class InvalidState(BuilderdError):
    """The builder is in a state that does not allow the call; the message says which."""

    code = "invalid_state"


class PreconditionFailed(BuilderdError):
    """A condition of the request (If-Match, If-None-Match) does not hold."""

    code = "precondition_failed"


class TooLarge(BuilderdError):
    """A body, a file or an archive is over its limit; the message says the limit."""

    code = "too_large"


class ValidationFailed(BuilderdError):
    """Fields that break a rule. ``errors`` maps a dotted path to the reasons; nothing was stored."""

    code = "validation_error"

    def __init__(self, errors: Mapping[str, Sequence[str]], message: str | None = None) -> None:
        super().__init__(message or _summary(errors))
        self.errors = {field: list(reasons) for field, reasons in errors.items()}


class StageFailed(BuilderdError):
    """Base of a failed stage: the builder is kept in ``failed``; ``data.uuid`` names it."""


class ReviewFailed(StageFailed):
    """The review rejected the code, and nothing was run. ``found`` has the findings."""

    code = "review_failed"
    found: tuple[Report, Verdict] | None = None


class InstallFailed(StageFailed):
    """The dependencies could not be installed; the message carries the installer's own words."""

    code = "install_failed"


class BuildFailed(StageFailed):
    """The build command failed, or exceeded its limits; the message shows the last lines that it wrote."""

    code = "build_failed"


class ReleaseFailed(StageFailed):
    """The release command failed, or exceeded its time; the message shows the last lines that it wrote."""

    code = "release_failed"


class StartFailed(StageFailed):
    """The app exited or did not listen on its port; the message says which and shows its last log lines."""

    code = "start_failed"


class QaFailed(StageFailed):
    """QA was required and failed; the message has the request and the answer."""

    code = "qa_failed"


class RateLimited(BuilderdError):
    """Too many calls; ``retry_after`` says when to come back."""

    code = "rate_limited"


class QuotaExceeded(BuilderdError):
    """A limit that the operator or the tenant set is reached."""

    code = "quota_exceeded"


class NoCapacity(BuilderdError):
    """The machine or the cluster has no room; the message says what is missing."""

    code = "no_capacity"


class BackupFailed(BuilderdError):
    """A backup could not be taken, restored or checked; the message says why, and nothing was replaced."""

    code = "backup_failed"


class StoreUnavailable(BuilderdError):
    """The database does not answer."""

    code = "store_unavailable"


class RecordDamaged(StoreUnavailable):
    """A builder's rows have values that cannot be decoded. Others are not affected."""

    REMEDY = (
        "delete the builder (DELETE /api/v1/builders/{uuid}) and create it again, or restore the service's state "
        "(builderd restore)"
    )

    def __init__(self, builder: str) -> None:
        super().__init__(
            f"The record of builder {builder} in the service's database is damaged, which is no fault of the request. "
            f"To go on, {self.REMEDY}."
        )


class EngineUnavailable(BuilderdError):
    """The engine is not ready or does not answer."""

    code = "engine_unavailable"


class BundleLost(EngineUnavailable):
    """A version's stored files are damaged or gone. Another try does not bring them back, so it has no Retry-After."""

    code = "bundle_lost"


class MachineFault(BuilderdError):
    """A fault of the machine, such as a full disk or a killed helper; the message names it and its cure."""

    code = "machine_fault"


def _summary(errors: Mapping[str, Sequence[str]]) -> str:
    field, reasons = next(iter(errors.items()))
    first = f"{field}: {reasons[0]}"
    rest = sum(len(r) for r in errors.values()) - 1
    return f"{first} (and {rest} more)" if rest else first
