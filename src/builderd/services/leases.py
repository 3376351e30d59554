"""Leases: a statement that a builder is busy until a time; until then it is neither frozen nor auto-stopped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta

from builderd.domain.builders import MAX_LEASES, Builder, Desired, Lease, LeaseId
from builderd.domain.errors import InvalidState, NotFound
from builderd.domain.ids import new_id
from builderd.services import candidates, wake
from builderd.services.application import Application
from builderd.services.wake import User
from builderd.store import UnitOfWork


def take(
    uow: UnitOfWork, application: Application, builder: Builder, actor: str, seconds: int, reason: str, now: datetime
) -> Lease:
    """Record a new lease of the locked builder for ``seconds`` from now, and wake the builder if it is frozen.

    Raises ``InvalidState`` when it does not run, or has the maximum number of leases.
    """
    if builder.desired is not Desired.RUNNING:
        raise InvalidState(f"The builder is {builder.status}: start it before you keep it busy.")
    # An expired lease was a use until its end; the use recorded below is later.
    uow.leases.expire(builder.id, now)
    if len(active(uow, builder, now)) >= MAX_LEASES:
        raise InvalidState(f"The builder has {MAX_LEASES} leases: renew one of them, or end one.")
    wake.request_wake(uow, application, builder, User(actor, f"woken for a lease by {actor}"), now)
    lease = Lease(LeaseId(new_id()), builder.id, reason, actor, now, now + timedelta(seconds=seconds))
    uow.leases.add(lease)
    _record_event(uow, builder, "lease.taken", actor, lease, now)
    return lease


def active(uow: UnitOfWork, builder: Builder, now: datetime) -> Sequence[Lease]:
    """Return the leases that have not ended, the oldest first."""
    return uow.leases.active(builder.id, now)


def renew(uow: UnitOfWork, builder: Builder, lease_id: str, seconds: int, reason: str | None, now: datetime) -> Lease:
    """Extend the lease to so many seconds from now. Raises ``NotFound``, also when it has expired."""
    lease = _get(uow, builder, lease_id, now)
    kept = lease.reason if reason is None else reason
    renewed = replace(lease, expires_at=now + timedelta(seconds=seconds), reason=kept)
    uow.leases.save(renewed)
    return renewed


def end(uow: UnitOfWork, builder: Builder, actor: str, lease_id: str, now: datetime) -> Lease:
    """End the lease now, and record a use until now. Raises ``NotFound``, also when it had ended before."""
    lease = _get(uow, builder, lease_id, now)
    uow.leases.delete(lease.id)
    wake.used(uow, builder, now)
    ended = replace(lease, expires_at=now)
    _record_event(uow, builder, "lease.ended", actor, ended, now)
    return ended


def _get(uow: UnitOfWork, builder: Builder, lease_id: str, now: datetime) -> Lease:
    for lease in active(uow, builder, now):
        if lease.id == lease_id:
            return lease
    raise NotFound("The builder has no such lease, or it is over: take a new one.")


def _record_event(uow: UnitOfWork, builder: Builder, kind: str, actor: str, lease: Lease, now: datetime) -> None:
    until = lease.expires_at.isoformat()
    candidates.record(uow, builder, kind, actor, lease.reason, now, lease=lease.id, expires_at=until)
