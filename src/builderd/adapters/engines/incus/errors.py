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
#: Words for a pool without space, and for an instance's root or a volume that has reached its limit.
NO_SPACE = "no space left on device"
_POOL_FULL = (NO_SPACE, "not enough space", "out of space")
_LIMIT_REACHED = "disk quota exceeded"
#: Seconds after which a write to a full pool is worth another try: space comes back in the background.
FULL_RETRY_SECONDS = 60


class PoolFull(NoCapacity):
    """The storage pool of a member has no space left."""


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


def pool_full(why: str, member: str = "") -> PoolFull:
    """Return the error for a write that a storage pool has no space for, that of ``member`` where it is known."""
    where = f" on the member {member}" if member else ""
    return PoolFull(
        f"The storage pool of Incus{where} is full ({why}). Delete a builder that is not needed: stopping one frees "
        "nothing. Or its operator frees space or enlarges the pool (incus storage info). Then try again.",
        retry_after=FULL_RETRY_SECONDS,
    )


def names_full_pool(text: str) -> bool:
    """Return True if a program's words, or those of Incus, say that there is no space left."""
    words = text.lower()
    return any(part in words for part in _POOL_FULL)


def unless_full(output: bytes, what: str) -> BuilderdError:
    """Return the error for a program of the service's own that failed, by its output; ``PoolFull`` where it says so."""
    told = output.decode(errors="replace")
    return (
        pool_full(NO_SPACE)
        if names_full_pool(told)
        else EngineUnavailable(f"{what}: {told}", retry_after=RETRY_SECONDS)
    )


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
    if names_full_pool(words):
        # Without paths of the member.
        return pool_full(text.rpartition(": ")[2])
    if _LIMIT_REACHED in words:
        return NoCapacity(f"{message}. What it writes to has reached its limit.", retry_after=FULL_RETRY_SECONDS)
    if _AMBIGUOUS in words:
        return IncusAmbiguous(status, message)
    if _ENDED in words:
        return InstanceEnded(status, message, retry_after=RETRY_SECONDS)
    if status == 404 or words.endswith("not found"):
        return IncusNotFound(status, message)
    if status == 409 or any(part in words for part in ("already", "in use", "unique constraint")):
        return IncusConflict(status, message)
    return IncusError(status, message, retry_after=RETRY_SECONDS)
