"""SSH: tokens that grant logins to a builder, and the record of logins."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from builderd.application import Application
from builderd.builders import outcomes
from builderd.builders import service as builders
from builderd.builders.model import Builder, Desired, JobType
from builderd.builders.service import Caller
from builderd.builders.uses import User
from builderd.core.errors import Conflict, InvalidState, Unauthenticated
from builderd.core.ids import new_id, new_secret, secret_hash
from builderd.database.unit_of_work import UnitOfWork
from builderd.events.model import Event
from builderd.executions.model import MAX_GRANTS, Grant
from builderd.idle import service as wake
from builderd.sandboxes.model import Sandbox
from builderd.tokens import service as tokens


def grant(uow: UnitOfWork, caller: Caller, builder_id: str, minutes: int, now: datetime) -> tuple[Builder, Grant, str]:
    """Make a grant; return it and its token, which is not stored.

    Raises ``NotFound``, and ``Conflict`` for too many.
    """
    builder = builders.get(uow, caller.tenant_id, builder_id, lock=True)
    tokens.require_unrevoked(uow, caller.token_id)
    if len(uow.ssh_grants.valid_of(builder.id, now)) >= MAX_GRANTS:
        raise Conflict(f"{MAX_GRANTS} SSH tokens of this builder are valid already: DELETE …/ssh ends them all.")
    token = new_secret("bdssh")
    made = Grant(
        id=new_id(),
        tenant_id=caller.tenant_id,
        builder_id=builder.id,
        secret_hash=secret_hash(token),
        created_by=caller.actor,
        created_at=now,
        expires_at=caller.end(now + timedelta(minutes=minutes)),
        token_id=caller.token_id,
    )
    uow.ssh_grants.add(made)
    uow.events.add(_event(made, "ssh.granted", now, f"granted by {caller.actor}", minutes=minutes))
    return builder, made, token


def recreate(
    uow: UnitOfWork, caller: Caller, builder_id: str, minutes: int, now: datetime
) -> tuple[Builder, Grant, str]:
    """Revoke all SSH grants of the builder and make a new one; return builder, grant and token. Raises ``NotFound``."""
    revoke(uow, caller, builder_id, now)
    return grant(uow, caller, builder_id, minutes, now)


def revoke(uow: UnitOfWork, caller: Caller, builder_id: str, now: datetime) -> Builder:
    """End all grants of the builder; its gateway cuts their sessions. Idempotent."""
    builder = builders.get(uow, caller.tenant_id, builder_id, lock=True)
    for valid in uow.ssh_grants.valid_of(builder.id, now):
        uow.ssh_grants.revoke(valid.id, now)
        note_revoked(uow, valid, caller.actor, f"revoked by {caller.actor}", now)
    return builder


def note_revoked(uow: UnitOfWork, ended: Grant, actor: str, reason: str, now: datetime) -> None:
    """Record that a grant was revoked."""
    uow.events.add(_event(ended, "ssh.revoked", now, reason, actor=actor))


def admit(uow: UnitOfWork, token: str, now: datetime) -> Grant:
    """Return the valid grant of this token and record its use. Raises ``Unauthenticated``."""
    found = valid_grant(uow, token, now)
    uow.ssh_grants.touch(found.id, now)
    return found


def valid_grant(uow: UnitOfWork, token: str, now: datetime) -> Grant:
    """Return the valid grant of this token. Raises ``Unauthenticated``."""
    found = uow.ssh_grants.by_secret_hash(secret_hash(token))
    if found is None or not found.is_valid(now) or not _is_live(uow, found):
        raise Unauthenticated("The SSH token is unknown, expired or revoked: get one with POST /builders/{uuid}/ssh.")
    return found


def is_good_still(uow: UnitOfWork, grant_id: str, now: datetime) -> bool:
    """Return whether a grant that was admitted is still valid."""
    found = uow.ssh_grants.get(grant_id)
    return found is not None and found.is_valid(now) and _is_live(uow, found)


def _is_live(uow: UnitOfWork, found: Grant) -> bool:
    builder = uow.builders.get(found.builder_id)
    return builder is not None and builder.desired is not Desired.DELETED


def opened(uow: UnitOfWork, used: Grant, address: str, now: datetime) -> None:
    """Record who logged in, and from where."""
    uow.events.add(_event(used, "ssh.opened", now, f"logged in from {address}", address=address))


def closed(uow: UnitOfWork, used: Grant, address: str, seconds: float, now: datetime) -> None:
    """Record the end of a login."""
    reason = f"logged out after {seconds:.0f} s"
    uow.events.add(_event(used, "ssh.closed", now, reason, address=address, seconds=round(seconds, 3)))


async def sandbox_of(application: Application, used: Grant) -> Sandbox:
    """Return the builder's sandbox, started if it is stopped. Raises the errors of a start."""
    builder = await application.store.read(lambda uow: builders.get(uow, used.tenant_id, used.builder_id))
    if builder.desired is Desired.STOPPED and not builder.wakes:
        if builder.job_type is JobType.ONE_TIME:
            raise InvalidState("The job does not run: start it first.")
        caller, now = Caller(used.tenant_id, used.created_by), application.clock.now()
        started = await application.commit(lambda uow: builders.start(uow, application, caller, used.builder_id, now))
        await outcomes.wait(application, started.id, started.generation)
    return await wake.awake(application, used.builder_id, User(used.created_by, f"woken by SSH of {used.created_by}"))


def _event(of: Grant, kind: str, now: datetime, reason: str, *, actor: str | None = None, **details: Any) -> Event:
    return Event(of.tenant_id, of.builder_id, now, kind, actor or of.created_by, reason, {"grant": of.id, **details})
