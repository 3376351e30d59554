"""Errors that a user can meet: one class per error code, and the faults of the machine as one of them.

Services and the reconciler raise these; only the HTTP door turns them into status numbers. The codes are those of the
HTTP contract. The callers of adapters let exceptions of the operating system pass: the HTTP door, the reconciler and
the backups ask ``machine_fault`` what they mean, so that no adapter needs a handler of its own.
"""

from __future__ import annotations

import errno
import ssl
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar


class BuilderdError(Exception):
    """Base of all coded errors.

    ``message`` says what is wrong and what to do. ``data`` has details for programs, such as the builder's uuid.
    ``retry_after`` is in whole seconds, where waiting helps.
    """

    code: ClassVar[str] = "internal_error"

    def __init_subclass__(cls, code: str = "") -> None:
        cls.code = code or cls.code

    def __init__(self, message: str, *, data: Mapping[str, Any] | None = None, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.data: dict[str, Any] = dict(data or {})
        self.retry_after = retry_after


class BadRequest(BuilderdError, code="bad_request"):
    """The body is not JSON, or not an object."""


class Unauthenticated(BuilderdError, code="unauthenticated"):
    """No token, or an unknown, expired or revoked one."""


class Forbidden(BuilderdError, code="forbidden"):
    """The token lacks the scope."""


class NotFound(BuilderdError, code="not_found"):
    """The tenant has no such resource."""


class NameTaken(BuilderdError, code="name_taken"):
    """The tenant has a builder of that name; ``data.uuid`` is its id."""


class Conflict(BuilderdError, code="conflict"):
    """A retry key is in flight, or was used for another body."""


class InvalidState(BuilderdError, code="invalid_state"):
    """The builder is in a state that does not allow the call; the message says which."""


class PreconditionFailed(BuilderdError, code="precondition_failed"):
    """A condition of the request (If-Match, If-None-Match) is not met."""


class TooLarge(BuilderdError, code="too_large"):
    """A body, a file or an archive is over its limit; the message says the limit."""


class ValidationFailed(BuilderdError, code="validation_error"):
    """Fields that break a rule. ``errors`` maps a dotted path to the reasons; nothing was stored."""

    def __init__(self, errors: Mapping[str, Sequence[str]], message: str | None = None) -> None:
        self.errors = {field: list(reasons) for field, reasons in errors.items()}
        first, *others = [f"{field}: {reason}" for field, reasons in errors.items() for reason in reasons]
        super().__init__(message or (f"{first} (and {len(others)} more)" if others else first))


class StageFailed(BuilderdError):
    """Base of a failed stage: the builder is kept in ``failed``; ``data.uuid`` names it."""


class InstallFailed(StageFailed, code="install_failed"):
    """The dependencies could not be installed; the message carries the installer's own words."""


class BuildFailed(StageFailed, code="build_failed"):
    """The build command failed, or exceeded its limits; the message shows the last lines that it wrote."""


class ReleaseFailed(StageFailed, code="release_failed"):
    """The release command failed, or exceeded its time; the message shows the last lines that it wrote."""


class StartFailed(StageFailed, code="start_failed"):
    """The app exited or did not listen on its port; the message says which and shows its last log lines."""


class QaFailed(StageFailed, code="qa_failed"):
    """QA was required and failed; the message has the request and the answer."""


class RateLimited(BuilderdError, code="rate_limited"):
    """Too many calls; ``retry_after`` says when to come back."""


class QuotaExceeded(BuilderdError, code="quota_exceeded"):
    """A limit that the operator or the tenant set is reached."""


class NoCapacity(BuilderdError, code="no_capacity"):
    """The machine or the cluster has no room; the message says what is missing."""


class BackupFailed(BuilderdError, code="backup_failed"):
    """A backup could not be taken, restored or checked; the message says why, and nothing was replaced."""


class StoreUnavailable(BuilderdError, code="store_unavailable"):
    """The database does not answer."""


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


class EngineUnavailable(BuilderdError, code="engine_unavailable"):
    """The engine is not ready or does not answer."""


class BundleLost(EngineUnavailable, code="bundle_lost"):
    """A version's stored files are damaged or gone. Another try does not bring them back, so it has no Retry-After."""


class MachineFault(BuilderdError, code="machine_fault"):
    """A fault of the machine, such as a full disk or a killed helper; the message names it and its cure."""


#: By errno: what is wrong with the machine, and what its operator can do. See errno(3).
_CURES: Mapping[int, tuple[str, str]] = {
    errno.ENOSPC: ("a disk of the service is full", "free space there (df -h, df -i, builderd doctor)"),
    errno.EDQUOT: ("a disk quota of the service is used up", "raise the quota or free space (builderd doctor)"),
    errno.EIO: ("a disk of the service does not read or write", "look at its health (dmesg, smartctl -a)"),
    errno.EROFS: ("a file system of the service is read-only", "see dmesg for the reason, repair it, mount it anew"),
    errno.EMFILE: ("the service has too many files open", "raise its limit (LimitNOFILE= of its unit, ulimit -n)"),
    errno.ENFILE: ("the machine has too many files open", "raise fs.file-max, or end what has them open"),
    errno.ENOMEM: ("the machine is out of memory", "end something, or give it more memory (free -m)"),
    errno.EAGAIN: ("the machine starts no more processes or threads", "raise TasksMax= of the unit, or kernel.pid_max"),
}
#: Raised by ``threading`` for EAGAIN of pthread_create(3).
_NO_THREAD = "can't start new thread"
#: When the caller may try again, in seconds.
RETRY_AFTER = 30


def machine_fault(error: BaseException) -> MachineFault | None:
    """Return the fault of the machine that caused this exception, None for an error of the program or its input.

    An error with a code is never a machine fault, even if one caused it: a builder's full disk is its owner's affair.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, BuilderdError):
            return cause if isinstance(cause, MachineFault) else None
        number = _errno_of(cause)
        if number in _CURES:
            what, cure = _CURES[number]
            return MachineFault(
                f"The machine is at fault, not the request: {what} ({errno.errorcode[number]}). "
                f"Its operator can fix it: {cure}. Then try again.",
                retry_after=RETRY_AFTER,
            )
        # Libraries such as httpcore hide what they wrap (``from None``), which is still there.
        cause = cause.__cause__ or cause.__context__
    return None


def is_by_machine(error: BaseException) -> bool:
    """Return True for a failure through the machine: a fault, a full machine, an engine that does not answer.

    It says nothing about what was worked on, and no tenant pays for it.
    """
    return isinstance(error, (NoCapacity, EngineUnavailable)) or machine_fault(error) is not None


def helper_died(what: str, how: str) -> MachineFault:
    """Return the error of a helper process that ended before its work was done, through no fault of its input."""
    return MachineFault(
        f"The machine is at fault, not the request: {what} {how}. Try again; if it happens again, see the service log "
        "and dmesg (the kernel kills processes when memory runs out).",
        retry_after=RETRY_AFTER,
    )


def _errno_of(error: BaseException) -> int:
    if isinstance(error, MemoryError):
        return errno.ENOMEM
    if isinstance(error, RuntimeError) and str(error) == _NO_THREAD:
        return errno.EAGAIN
    if isinstance(error, ssl.SSLError):
        # Its errno is a number of OpenSSL's: EOF in the middle of a record (SSL_ERROR_SYSCALL) would read as EIO.
        return 0
    return (error.errno or 0) if isinstance(error, OSError) else 0
