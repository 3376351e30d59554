"""Errors of Incus as errors of the service. Incus tells most causes by words alone, so they are matched here only."""

from __future__ import annotations

from builderd.domain.errors import BuilderdError, EngineUnavailable, NoCapacity
from builderd.domain.members import MemberAway

#: Seconds after which a call is worth another try.
RETRY_SECONDS = 5
#: Words for a cluster without a quorum, and for a member that does not answer.
_AWAY = (
    "no available cowsql leader",
    "no available dqlite leader",
    "context deadline exceeded",
    "failed to begin transaction",
    "database is locked",
    "connection refused",
    "no route to host",
    "is currently offline",
    "is offline",
    "i/o timeout",
    "missing event connection with target cluster member",
    "isn't ready yet",
)
#: Words for an app that did not end in the time that it was given: its member is there, and can kill it.
_STILL_RUNS = "failed shutting down instance"
#: Words for an instance whose last process ended while Incus looked at it.
_ENDED = "invalid pid"
_AMBIGUOUS = "more than one cluster member has a volume"
_FULL = ("no space left on device", "disk quota exceeded", "not enough space")


class IncusError(EngineUnavailable):
    """A call that Incus refused; ``status`` is its error code."""

    def __init__(self, status: int, message: str, *, retry_after: int | None = None) -> None:
        super().__init__(message, retry_after=retry_after)
        self.status = status


class IncusNotFound(IncusError):
    """Incus has no such object."""


class IncusAmbiguous(IncusError):
    """Several members have a volume of this name: the call must name one."""


class InstanceEnded(IncusError):
    """The instance ended while Incus looked at its first process."""


class IncusConflict(IncusError):
    """An object of this name or address exists, or is in use."""


def member_away(member: str) -> MemberAway:
    """Return the error for what only a member has that does not answer."""
    return MemberAway(
        f"The member {member} of the cluster does not answer: see incus cluster list.", retry_after=2 * RETRY_SECONDS
    )


def state_unknown(instance: str) -> EngineUnavailable:
    """Return the error for an instance that ended while Incus listed it, or whose member has just stopped answering."""
    return EngineUnavailable(
        f"Incus could not read the state of the instance {instance}: see incus list.", retry_after=RETRY_SECONDS
    )


def unreachable(place: str, why: object) -> EngineUnavailable:
    """Return the error for a server that does not answer."""
    return EngineUnavailable(
        f"Incus does not answer at {place}: {why}. Check it by: incus cluster list, or builderd doctor.",
        retry_after=RETRY_SECONDS,
    )


def error_of(status: int, text: str, action: str) -> BuilderdError:
    """Return the error for Incus's answer to ``action`` (method and path)."""
    words = text.lower()
    message = f"Incus refused {action}: {text}"
    if _STILL_RUNS in words:
        return IncusError(status, message, retry_after=RETRY_SECONDS)
    if status == 503 or any(part in words for part in _AWAY):
        return EngineUnavailable(
            f"Incus cannot work on {action} now: {text}. The cluster has no quorum, or a member is away: see "
            "incus cluster list.",
            retry_after=2 * RETRY_SECONDS,
        )
    if any(part in words for part in _FULL):
        return NoCapacity(f"The storage pool of Incus is full ({text}): its operator must free space.")
    if _AMBIGUOUS in words:
        return IncusAmbiguous(status, message)
    if _ENDED in words:
        return InstanceEnded(status, message, retry_after=RETRY_SECONDS)
    if status == 404 or words.endswith("not found"):
        return IncusNotFound(status, message)
    if status == 409 or any(part in words for part in ("already", "in use", "unique constraint")):
        return IncusConflict(status, message)
    return IncusError(status, message, retry_after=RETRY_SECONDS)
