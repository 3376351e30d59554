"""Outcomes: wait for the result of a requested change, and follow its stages."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from functools import partial
from typing import TypeVar

from builderd.application import Application
from builderd.backups import model as backups
from builderd.backups.model import Backup, BackupStatus, Restore, RestoreStatus
from builderd.builders.candidates import TakesOver, releases
from builderd.builders.model import Builder, Desired, Status
from builderd.builders.signals import not_yet, outcome_of
from builderd.core.errors import (
    RETRY_AFTER,
    BackupFailed,
    BuilderdError,
    BuildFailed,
    BundleLost,
    EngineUnavailable,
    InstallFailed,
    InvalidState,
    MachineFault,
    NoCapacity,
    NotFound,
    QaFailed,
    ReleaseFailed,
    StartFailed,
)
from builderd.core.ids import BuilderId
from builderd.database.unit_of_work import UnitOfWork
from builderd.events.model import Event
from builderd.previews.model import closed_route
from builderd.review.model import Report, ReviewFailed, Verdict, judge
from builderd.versions.model import Version, VersionStatus

T = TypeVar("T")

#: Seconds for which a change waits for a take-over in progress, and a command for a builder that is starting:
#: as long as a preview pauses requests.
MAX_WAIT_SECONDS = 30.0
#: Interval of polls between signals, in seconds.
LOOK_INTERVAL = 0.5
#: Interval of polls for results that take moments, in seconds.
SHORT_INTERVAL = 0.01
#: Seconds without an outcome after which a call is answered while nothing that starts or ends sandboxes answers.
MAX_UNREACHABLE_SECONDS = 10.0

FAILURES: dict[str, type[BuilderdError]] = {
    error.code: error
    for error in (
        ReviewFailed,
        InstallFailed,
        BuildFailed,
        ReleaseFailed,
        StartFailed,
        QaFailed,
        NoCapacity,
        EngineUnavailable,
        BundleLost,
        MachineFault,
        InvalidState,
        BackupFailed,
    )
}
#: Failures after which the same call may succeed later.
RETRIED = (EngineUnavailable, MachineFault, NoCapacity)
#: Errors that are an outcome. Any other error of a wait, such as ``StoreUnavailable``, is temporary.
FAILED = tuple(FAILURES.values())


class WaitLimit:
    """Limits the wait for the outcome of stored work, which the reconciler goes on with all the same."""

    def __init__(self, application: Application) -> None:
        self._app = application
        self._failures_before = application.stalled.number
        self._lost_since: float | None = None

    def lost(self) -> str | None:
        """Return what is out of reach, once it has been so for ``MAX_UNREACHABLE_SECONDS`` of looks; None before."""
        readiness, now = self._app.engine.readiness(), asyncio.get_running_loop().time()
        if not readiness.engine_unreachable:
            self._lost_since = None
        elif self._lost_since is None:
            self._lost_since = now
        elif now - self._lost_since >= MAX_UNREACHABLE_SECONDS:
            return readiness.message
        return None

    def check(self, wanted: Builder) -> None:
        """Raise when no outcome is to be expected soon.

        ``EngineUnavailable`` while the engine has been out of reach; the error of a stop or deletion that keeps
        failing.
        """
        if (lost := self.lost()) is not None:
            raise not_yet(wanted, EngineUnavailable(lost))
        if wanted.desired is not Desired.RUNNING:
            error = self._app.stalled.error_since(wanted, self._failures_before)
            if error is not None:
                raise error


async def wait(application: Application, builder_id: BuilderId, generation: int) -> Builder:
    """Wait until the generation, or a newer one that replaced it, has an outcome; return the builder.

    Raises the error of the stage that failed, with ``data.uuid`` and ``data.version``, and what ``WaitLimit`` raises.
    """
    builder = await wait_until_settled(application, builder_id, generation)
    await raise_failure(application, builder, generation)
    return builder


async def raise_failure(application: Application, builder: Builder, generation: int) -> None:
    """Raise the error of the stage that failed if this generation, or a newer one, put the builder into ``failed``."""
    if builder.status is not Status.FAILED or builder.failure_code is None or builder.observed_generation < generation:
        return
    raise await _failure(application, builder.failure_code, builder.status_reason, builder, builder.version)


async def wait_until_settled(
    application: Application, builder_id: BuilderId, generation: int, *, limited: bool = True
) -> Builder:
    """Wait until the generation, or a newer one, has an outcome; return the builder, also if it failed."""
    return await read_settled(application, builder_id, generation, lambda _, builder: builder, limited=limited)


async def read_settled(
    application: Application,
    builder_id: BuilderId,
    generation: int,
    read: Callable[[UnitOfWork, Builder], T],
    *,
    limited: bool = True,
) -> T:
    """Return what is read of the builder in the transaction that finds it settled. Raises as ``WaitLimit`` does."""

    def look(uow: UnitOfWork) -> tuple[Builder, T | None]:
        found = _get(uow, builder_id)
        return found, read(uow, found) if is_over(found, generation) else None

    outcome, limit = outcome_of(builder_id), WaitLimit(application)
    while True:
        seen = application.signals.count(outcome)
        builder, found = await application.store.read(look)
        if found is not None:
            return found
        if limited:
            limit.check(builder)
        await application.signals.wait(outcome, seen, LOOK_INTERVAL)


async def _failure(application: Application, code: str, reason: str, builder: Builder, number: int) -> BuilderdError:
    """Return the error of a version's failed stage; that of a review has its findings."""
    kind = FAILURES[code]
    data = {"uuid": builder.id, "version": number}
    failure = kind(reason, data=data, retry_after=RETRY_AFTER if kind in RETRIED else None)

    def find(uow: UnitOfWork) -> tuple[Report, Verdict] | None:
        version = uow.versions.get(builder.id, number)
        report = uow.reviews.get(builder.tenant_id, version.review_key) if version and version.review_key else None
        accepted = uow.acceptances.of_builder(builder.id)
        return (report, judge(report, accepted, application.clock.now())) if report else None

    if isinstance(failure, ReviewFailed):
        failure.found = await application.store.read(find)
    return failure


async def deployed(application: Application, builder_id: BuilderId, number: int) -> Builder:
    """Wait until this version has taken over; return the builder. Raises the error of the stage that failed.

    After a failure, the builder is back at its previous version. A builder that was deleted is returned too.
    """
    limit = WaitLimit(application)
    while True:
        seen = application.signals.count(builder_id)
        builder, version = await application.store.read(lambda uow: _get_version(uow, builder_id, number))
        if _is_deployed(builder, version):
            break
        limit.check(builder)
        await application.signals.wait(builder_id, seen, LOOK_INTERVAL)
    if version.status is VersionStatus.FAILED and builder.desired is not Desired.DELETED:
        code = version.failure_code or InvalidState.code
        raise await _failure(application, code, version.status_reason, builder, number)
    return builder


async def after_take_over(application: Application, builder_id: BuilderId, change: Callable[[], Awaitable[T]]) -> T:
    """Make the change; while a version takes over or releases, wait first. Raises what ``change`` raises."""
    deadline = asyncio.get_running_loop().time() + MAX_WAIT_SECONDS

    def is_taking_over(uow: UnitOfWork) -> bool:
        builder = uow.builders.get(builder_id)
        return builder is not None and (builder.handover is not None or releases(uow, builder))

    while True:
        seen = application.signals.count(builder_id)
        try:
            return await change()
        except TakesOver:
            if asyncio.get_running_loop().time() >= deadline:
                raise
        while await application.store.read(is_taking_over):
            if asyncio.get_running_loop().time() >= deadline:
                break
            await application.signals.wait(builder_id, seen, LOOK_INTERVAL)
            seen = application.signals.count(builder_id)


async def wait_until_reachable(application: Application, builder: Builder) -> None:
    """Wait until the preview admits exactly the visitors that visibility and service token allow.

    Raises ``EngineUnavailable`` after ``MAX_WAIT_SECONDS``; the route is updated all the same, as soon as possible.
    """
    try:
        async with asyncio.timeout(MAX_WAIT_SECONDS):
            while (route := await application.previews.get(builder.host)) is not None:
                wanted = closed_route(builder)
                if (route.token_hash, route.owner_hash) == (wanted.token_hash, wanted.owner_hash):
                    return
                await asyncio.sleep(SHORT_INTERVAL)
                builder = await application.store.read(partial(_get, builder_id=builder.id))
    except TimeoutError:
        raise EngineUnavailable(
            "The change is stored, and the preview does not keep to it yet: look again in a moment.",
            data={"uuid": builder.id},
        ) from None


def deployment_stages(application: Application, builder_id: BuilderId, number: int) -> AsyncIterator[Event]:
    """Yield the stage events of this version as they are recorded, until it has an outcome."""
    return _stages(application, builder_id, lambda uow: _is_deployed(*_get_version(uow, builder_id, number)), number)


def stages(application: Application, builder_id: BuilderId, generation: int) -> AsyncIterator[Event]:
    """Yield the stage events as they are recorded, until the generation has an outcome."""
    return _stages(application, builder_id, lambda uow: is_over(_get(uow, builder_id), generation))


async def _stages(
    application: Application,
    builder_id: BuilderId,
    has_outcome: Callable[[UnitOfWork], bool],
    number: int | None = None,
) -> AsyncIterator[Event]:
    """Yield stage events until there is an outcome; with ``number``, those after the event of its creation."""
    after, begun = 0, number is None

    def look(uow: UnitOfWork) -> tuple[Sequence[Event], bool]:
        return tuple(uow.events.of_builder(builder_id, after=after)), has_outcome(uow)

    while True:
        seen = application.signals.count(builder_id)
        events, is_done = await application.store.read(look)
        for event in events:
            after = event.id
            begun = begun or (event.type == "version.created" and event.details.get("version") == number)
            if begun and event.type.startswith("stage."):
                yield event
        if is_done and not events:
            return
        if not events:
            await application.signals.wait(builder_id, seen, LOOK_INTERVAL)


def _get(uow: UnitOfWork, builder_id: BuilderId) -> Builder:
    builder = uow.builders.get(builder_id)
    if builder is None:
        raise NotFound("The builder is gone.")
    return builder


def _get_version(uow: UnitOfWork, builder_id: BuilderId, number: int) -> tuple[Builder, Version]:
    version = uow.versions.get(builder_id, number)
    if version is None:
        raise NotFound("The version is gone.")
    return _get(uow, builder_id), version


def _is_deployed(builder: Builder, version: Version) -> bool:
    if builder.desired is Desired.DELETED:
        return True
    return version.status is not VersionStatus.PENDING and builder.handover is None


def is_over(builder: Builder, generation: int) -> bool:
    """Return True if the generation, or a newer one, has an outcome."""
    if builder.desired is Desired.RUNNING:
        return builder.observed_generation >= generation
    return builder.settled


Work = TypeVar("Work", Backup, Restore)


async def taken(application: Application, backup: Backup) -> Backup:
    """Wait for the backup and return it. Raises ``BackupFailed`` with the reason, or its external cause's error.

    Raises ``EngineUnavailable`` while the engine is out of reach; the backup is taken later.
    """
    return await _ended(application, backup, lambda uow: uow.backups.get(backup.id), "backup", "done")


async def restored(application: Application, restore: Restore) -> Restore:
    """Wait for the restore and return it. Raises as ``taken``; it goes on later."""
    return await _ended(application, restore, lambda uow: uow.restores.get(restore.id), "restore", "restored")


async def _ended(
    application: Application, work: Work, read: Callable[[UnitOfWork], Work | None], name: str, end: str
) -> Work:
    """Wait until the work is done, and return it."""
    limit = WaitLimit(application)
    while True:
        seen = application.signals.count(work.builder_id)
        found = await application.store.read(read)
        if found is None:
            raise NotFound(f"The backup was removed before it was {end}.")
        if found.status in (BackupStatus.FAILED, RestoreStatus.FAILED):
            raise backups.failure_of(found)
        if not found.is_open:
            return found
        if (lost := limit.lost()) is not None:
            raise EngineUnavailable(
                f"The {name} is stored and goes on, but may still fail: see GET "
                f"/api/v1/builders/{work.builder_id}/backups. {lost}",
                data={"uuid": work.builder_id},
                retry_after=RETRY_AFTER,
            )
        await application.signals.wait(work.builder_id, seen, LOOK_INTERVAL)
