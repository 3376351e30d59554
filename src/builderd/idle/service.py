"""Wake and activity: a use of a sleeping builder wakes it. One that a person or a cap stopped stays stopped."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import datetime, timedelta

from builderd.application import Application
from builderd.builders import candidates, outcomes, uses
from builderd.builders.model import MAX_LEASES, Builder, Desired, Lease, LeaseId, Status, StopKind
from builderd.builders.uses import STILL_IN_USE, User, request_wake
from builderd.core.errors import InvalidState, NoCapacity, NotFound, QuotaExceeded
from builderd.core.ids import BuilderId, SandboxId, new_id
from builderd.core.loops import end_tasks
from builderd.database.unit_of_work import UnitOfWork
from builderd.money import caps
from builderd.sandboxes.model import Sandbox, SandboxState

#: ``Retry-After`` for callers that came while the builder was starting, in seconds.
RETRY_AFTER = 5

log = logging.getLogger(__name__)


async def visited(application: Application, host: str) -> None:
    """Wake the stopped or frozen builder for which requests wait; reject them if there is no capacity to start it.

    Hosts that no builder owns are ignored.
    """
    now = application.clock.now()

    def work(uow: UnitOfWork) -> BuilderId | None:
        builder = uow.builders.by_host(host, lock=True)
        if builder is None:
            return None
        if builder.wakes:
            try:
                caps.check(uow, application, builder.tenant_id, builder, now)
            except QuotaExceeded as error:
                reason = error.message
                uow.builders.save(replace(builder, stop_kind=StopKind.CAP, status_reason=reason, updated_at=now))
                return builder.id
        return builder.id if _differs(request_wake(uow, application, builder, User(), now), builder) else None

    try:
        changed = await application.store.write(work)
    except (NoCapacity, QuotaExceeded) as error:
        log.warning("wake rejected host=%s error=%s", host, error.message)
        await application.previews.reject_visitors(host)
        return
    if changed is not None:
        _signal(application, changed)


def _differs(wanted: Builder, builder: Builder) -> bool:
    return wanted.asleep_since != builder.asleep_since or wanted.desired is not builder.desired


async def awake(application: Application, builder_id: BuilderId, user: User | None = None) -> Sandbox:
    """Return the sandbox of a running builder: thawed if it was frozen, started if it idled to a stop.

    For commands and sessions; the use is recorded. It waits for a builder that is starting, or restarting after a
    crash, but not for the first start of a new builder. Raises ``InvalidState`` when the builder does not run and must
    not be woken or takes too long, ``NotFound`` when it is deleted, and the error of the stage that failed after a
    wake.
    """
    now = application.clock.now()

    def work(uow: UnitOfWork) -> tuple[Builder, bool, Sandbox | None]:
        builder = _get(uow, builder_id)
        wanted = request_wake(uow, application, builder, user or User(), now)
        return wanted, _differs(wanted, builder), uow.sandboxes.open_of(builder_id)

    builder, woken, sandbox = await application.store.write(work)
    if woken:
        _signal(application, builder_id)
        await outcomes.wait(application, builder_id, builder.generation)
    elif sandbox is not None and await is_up(application, builder, sandbox):
        return sandbox
    return await _up(application, builder_id)


@asynccontextmanager
async def keep_awake(application: Application, sandbox: SandboxId) -> AsyncIterator[None]:
    """Record use of the sandbox's builder while the block lasts, such as a command or a session.

    A builder that was put to sleep all the same, as when the database was unavailable for a while, is woken.
    """

    def note(uow: UnitOfWork) -> BuilderId | None:
        record = uow.sandboxes.get(sandbox)
        builder = uow.builders.get(record.builder_id, lock=True) if record else None
        if builder is None:
            return None
        now = application.clock.now()
        if builder.asleep_since is None or builder.desired is not Desired.RUNNING:
            uses.used(uow, builder, now)
            return None
        return request_wake(uow, application, builder, STILL_IN_USE, now).id

    async with record_use_repeatedly(application, note):
        yield


async def _up(application: Application, builder_id: BuilderId) -> Sandbox:
    """Wait for the builder's sandbox to exist and not be frozen; return it."""
    deadline = asyncio.get_running_loop().time() + outcomes.MAX_WAIT_SECONDS
    while True:
        seen = application.signals.count(builder_id)
        builder, sandbox = await application.store.read(
            lambda uow: (_get(uow, builder_id, lock=False), uow.sandboxes.open_of(builder_id))
        )
        if builder.desired is not Desired.RUNNING:
            why = f" ({builder.status_reason})" if builder.status_reason else ""
            raise InvalidState(f"The builder is {builder.status}{why}: start it first.")
        if sandbox is not None and await is_up(application, builder, sandbox):
            return sandbox
        if builder.status is Status.CREATING:
            raise InvalidState("The builder is still being created: wait until it runs.")
        if asyncio.get_running_loop().time() >= deadline:
            raise InvalidState("The builder is being started: try again in a moment.", retry_after=RETRY_AFTER)
        await application.signals.wait(builder_id, seen, outcomes.LOOK_INTERVAL)


async def is_up(application: Application, builder: Builder, sandbox: Sandbox) -> bool:
    """Return whether the sandbox belongs to the present run and is running; one of an earlier run is being stopped.

    The sandbox of a release command takes no commands: it ends by itself, with all that runs in it.
    """
    if builder.desired is not Desired.RUNNING:
        return False
    if sandbox.generation != builder.generation or sandbox.started_at is None or sandbox.release:
        return False
    return (await application.engine.sandboxes.report(sandbox.id)).state is SandboxState.RUNNING


def _get(uow: UnitOfWork, builder_id: BuilderId, *, lock: bool = True) -> Builder:
    builder = uow.builders.get(builder_id, lock=lock)
    if builder is None or builder.desired is Desired.DELETED:
        raise NotFound("There is no builder of this uuid.")
    return builder


def _signal(application: Application, builder_id: BuilderId) -> None:
    application.signals.desired_changed(builder_id)
    application.signals.change(builder_id)


#: How often a use that continues is written down, in seconds; more often where things are frozen sooner.
INTERVAL = 15.0
#: Visits, uses of a builder's files, and commands in it, within this time of each other are recorded once; less where
#: things are frozen sooner.
NOTICED = timedelta(seconds=1)
#: A use that continues is recorded so many times in the shortest time after which its builder may be frozen.
NOTES_PER_FREEZE = 3

#: Records a continuing use; returns the id of the builder that it woke, if any.
Note = Callable[[UnitOfWork], BuilderId | None]


def is_recorded(application: Application, builder: Builder, at: datetime) -> bool:
    """Return True if a use was recorded so lately before ``at`` that one at that time need not be."""
    within = min(NOTICED, timedelta(seconds=_interval(application)))
    return builder.last_active_at is not None and at - builder.last_active_at < within


@asynccontextmanager
async def track_use(application: Application, builder: Builder) -> AsyncIterator[None]:
    """Record a use of the builder's files while the block lasts. A sleeping builder stays asleep."""
    now = application.clock.now()
    if not is_recorded(application, builder, now):
        await application.store.write(lambda uow: uses.touch(uow, builder.id, now))

    def note(uow: UnitOfWork) -> None:
        uses.touch(uow, builder.id, application.clock.now())

    async with record_use_repeatedly(application, note):
        yield


@asynccontextmanager
async def record_use_repeatedly(application: Application, note: Note) -> AsyncIterator[None]:
    """Record the use by ``note``, again and again, while the block lasts."""
    task = asyncio.create_task(_record_repeatedly(application, note))
    try:
        yield
    finally:
        await end_tasks(task)


def _interval(application: Application) -> float:
    """Return how often a use that continues is recorded, in seconds."""
    freeze_after = application.limits.freeze_after
    return min(INTERVAL, freeze_after / NOTES_PER_FREEZE) if freeze_after else INTERVAL


async def _record_repeatedly(application: Application, note: Note) -> None:
    while True:
        await asyncio.sleep(_interval(application))
        try:
            woken = await application.store.write(note)
            if woken is not None:
                _signal(application, woken)
        except Exception:
            # The use continues, and so does its record once the database answers again.
            log.exception("use not recorded, retrying in a few seconds")


def take_lease(
    uow: UnitOfWork, application: Application, builder: Builder, actor: str, seconds: int, reason: str, now: datetime
) -> Lease:
    """Record a new lease of the locked builder for ``seconds`` from now, and wake the builder if it is frozen.

    Raises ``InvalidState`` when it does not run, or has the maximum number of leases.
    """
    if builder.desired is not Desired.RUNNING:
        raise InvalidState(f"The builder is {builder.status}: start it before you keep it busy.")
    # An expired lease was a use until its end; the use recorded below is later.
    uow.leases.expire(builder.id, now)
    if len(active_leases(uow, builder, now)) >= MAX_LEASES:
        raise InvalidState(f"The builder has {MAX_LEASES} leases: renew one of them, or end one.")
    request_wake(uow, application, builder, User(actor, f"woken for a lease by {actor}"), now)
    lease = Lease(LeaseId(new_id()), builder.id, reason, actor, now, now + timedelta(seconds=seconds))
    uow.leases.add(lease)
    _record_event(uow, builder, "lease.taken", actor, lease, now)
    return lease


def active_leases(uow: UnitOfWork, builder: Builder, now: datetime) -> Sequence[Lease]:
    """Return the leases that have not ended, the oldest first."""
    return uow.leases.active(builder.id, now)


def renew_lease(
    uow: UnitOfWork, builder: Builder, lease_id: str, seconds: int, reason: str | None, now: datetime
) -> Lease:
    """Extend the lease to so many seconds from now. Raises ``NotFound``, also when it has expired."""
    lease = _lease(uow, builder, lease_id, now)
    kept = lease.reason if reason is None else reason
    renewed = replace(lease, expires_at=now + timedelta(seconds=seconds), reason=kept)
    uow.leases.save(renewed)
    return renewed


def end_lease(uow: UnitOfWork, builder: Builder, actor: str, lease_id: str, now: datetime) -> Lease:
    """End the lease now, and record a use until now. Raises ``NotFound``, also when it had ended before."""
    lease = _lease(uow, builder, lease_id, now)
    uow.leases.delete(lease.id)
    uses.used(uow, builder, now)
    ended = replace(lease, expires_at=now)
    _record_event(uow, builder, "lease.ended", actor, ended, now)
    return ended


def _lease(uow: UnitOfWork, builder: Builder, lease_id: str, now: datetime) -> Lease:
    for lease in active_leases(uow, builder, now):
        if lease.id == lease_id:
            return lease
    raise NotFound("The builder has no such lease, or it is over: take a new one.")


def _record_event(uow: UnitOfWork, builder: Builder, kind: str, actor: str, lease: Lease, now: datetime) -> None:
    until = lease.expires_at.isoformat()
    candidates.record(uow, builder, kind, actor, lease.reason, now, lease=lease.id, expires_at=until)
