"""Uses of a builder: each is recorded and wakes one that sleeps, but none that a person or a cap stopped."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime

from builderd.application import Application
from builderd.builders.model import Builder, Cause, Desired, Status
from builderd.core.ids import BuilderId
from builderd.database.unit_of_work import UnitOfWork
from builderd.events.model import SYSTEM
from builderd.money import admission

#: The actor of a wake by a request to the preview.
VISITOR = "visitor"


@dataclass(frozen=True, slots=True)
class User:
    """User of a builder: the actor as events name it, and the reason (``woken by …``)."""

    actor: str = VISITOR
    reason: str = "woken by a visitor"


STILL_IN_USE = User(SYSTEM, "woken since a command or a session in it goes on")


def request_wake(uow: UnitOfWork, application: Application, builder: Builder, user: User, now: datetime) -> Builder:
    """Record the use, and wake the locked builder if it sleeps. Concurrent uses cause one wake.

    Raises ``QuotaExceeded`` and ``NoCapacity`` for a stopped builder that cannot start.
    """
    # One save: a visitor's request may be blocked on this transaction.
    if builder.wakes:
        admission.admit_run(uow, application, builder, now)
        wanted = replace(touched(builder, now), desired=Desired.RUNNING, asleep_since=None)
        if builder.status is not Status.RUNNING:  # not the old run, which is stopped, but a new one
            wanted = replace(wanted, generation=builder.generation + 1, exit_code=None, failure_code=None)
    elif builder.asleep_since is not None and builder.desired is Desired.RUNNING:
        wanted = replace(touched(builder, now), asleep_since=None)
    else:
        return used(uow, builder, now)
    wanted = replace(wanted, cause=Cause(user.actor, user.reason), updated_at=now)
    uow.builders.save(wanted)
    uow.builders.make_due(wanted.id, now)
    return wanted


def touch(uow: UnitOfWork, builder_id: BuilderId, at: datetime) -> Builder | None:
    """Record a use of the builder at this time; return it, None when it is gone. ``request_wake`` does the waking.

    Call this repeatedly while a use lasts, such as an open session.
    """
    builder = uow.builders.get(builder_id, lock=True)
    return None if builder is None else used(uow, builder, at)


def used(uow: UnitOfWork, builder: Builder, at: datetime) -> Builder:
    """Record a use of a locked builder at this time; return the builder with it. Wakes nothing."""
    later = touched(builder, at)
    if later is not builder:
        uow.builders.save(later)
    return later


def touched(builder: Builder, at: datetime) -> Builder:
    """Return the builder with ``last_active_at`` moved forward to this time, never back. The caller saves it."""
    if builder.last_active_at is not None and builder.last_active_at >= at:
        return builder
    return replace(builder, last_active_at=at)
