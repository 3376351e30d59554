"""Idle builders: record visits, freeze and auto-stop what is not used, and wake it for requests in the proxy."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial
from math import inf

from builderd.application import Application
from builderd.builders.model import (
    Builder,
    Cause,
    Desired,
    IdleAction,
    Lease,
    StopKind,
    can_idle,
    freeze_reason,
    idle_action,
    stop_reason,
)
from builderd.builders.uses import used
from builderd.core.ids import BuilderId, SandboxId
from builderd.core.loops import every
from builderd.database.unit_of_work import UnitOfWork
from builderd.events.model import SYSTEM
from builderd.idle import service as wake
from builderd.idle.service import is_recorded
from builderd.previews.model import PreviewActivity
from builderd.sandboxes.model import SandboxUsage

#: How often it is checked what is used, in seconds; more often where things are frozen sooner.
INTERVAL = 5.0
LOOKS_PER_FREEZE = 4
#: Seconds by which two readings of visits overlap.
MARGIN = 1.0

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class CpuSample:
    """CPU seconds of a sandbox at a time, and since when it has used next to none. Times are those of ``passed``."""

    sandbox: SandboxId
    at: float
    cpu_seconds: float
    quiet_since: float


class Idleness:
    """Idle check. Readings are kept in memory: after a restart of the service, idle builders sleep a little later."""

    def __init__(self, application: Application) -> None:
        self._app = application
        self._samples: dict[BuilderId, CpuSample] = {}
        self._noted_at: float | None = None

    async def watch(self) -> None:
        """Run the check every ``interval`` seconds until cancelled."""
        await every(self.interval, self.check, event="idle check", wait_first=True, sleep=self._app.clock.sleep)

    @property
    def interval(self) -> float:
        freeze_after = self._app.limits.freeze_after
        return min(INTERVAL, freeze_after / LOOKS_PER_FREEZE) if freeze_after else INTERVAL

    async def check(self) -> None:
        """Run one check: visits are read first, so that a visited builder is not idle."""
        begun = self._app.clock.passed()
        within = begun - self._noted_at + MARGIN if self._noted_at is not None else inf
        await note(self._app, within)
        self._noted_at = begun
        candidates = await self._app.store.read(lambda uow: uow.builders.idle_candidates())
        await self._take_readings(candidates)
        now = self._app.clock.now()
        for builder in candidates:
            if self._judge(builder, (), now) is None:
                continue
            changed = await self._app.store.write(partial(self._decide, builder_id=builder.id, now=now))
            if changed:
                self._app.signals.desired_changed(builder.id)
                self._app.signals.change(builder.id)

    async def _take_readings(self, candidates: Sequence[Builder]) -> None:
        if not self._app.limits.freeze_after:
            return
        awake = [builder.id for builder in candidates if builder.asleep_since is None and can_idle(builder)]
        sandboxes = await self._app.store.read(lambda uow: uow.sandboxes.open_of_all(awake))
        found = await self._app.engine.sandboxes.usages([one.id for one in sandboxes])
        if errors := [one for one in found.values() if isinstance(one, Exception)]:
            # Builders without a reading sleep later; the check of the others continues.
            log.warning("idle check skipped, usage unavailable builders=%d", len(errors), exc_info=errors[0])
        before, now = self._samples, self._app.clock.passed()
        self._samples = {
            one.builder_id: self._compare(before.get(one.builder_id), one.id, used, now)
            for one in sandboxes
            if isinstance(used := found.get(one.id), SandboxUsage)
        }

    def _compare(self, before: CpuSample | None, sandbox: SandboxId, used: SandboxUsage, at: float) -> CpuSample:
        """Return the sample with the time since which it is quiet; the one before where that is the later one."""
        sample = CpuSample(sandbox, at, used.cpu_seconds, at)
        if before is None or before.sandbox != sandbox:
            return sample
        if at <= before.at:
            return before
        # Two readings that follow each other at once tell nothing about a part of a CPU.
        seconds = max(at - before.at, self.interval)
        is_quiet = used.cpu_seconds - before.cpu_seconds <= self._app.limits.quiet_cpu * seconds
        return replace(sample, quiet_since=before.quiet_since) if is_quiet else sample

    def _judge(self, builder: Builder, leases: Sequence[Lease], now: datetime) -> IdleAction | None:
        sample = self._samples.get(builder.id)
        # Up to the last reading: one of an engine that reads seldom tells nothing about the seconds since.
        quiet_for = sample.at - sample.quiet_since if sample else 0
        return idle_action(builder, leases, now, self._freeze_after, timedelta(seconds=quiet_for))

    @property
    def _freeze_after(self) -> timedelta | None:
        seconds = self._app.limits.freeze_after
        return timedelta(seconds=seconds) if seconds else None

    def _decide(self, uow: UnitOfWork, builder_id: BuilderId, now: datetime) -> bool:
        """Judge the builder as stored now and record its new desired state; return whether it changed."""
        builder = uow.builders.get(builder_id, lock=True)
        if builder is None:
            return False
        leases = uow.leases.of_builder(builder_id)
        if ended := [lease.expires_at for lease in leases if lease.expires_at <= now]:
            builder = used(uow, builder, max(ended))
            uow.leases.expire(builder_id, now)
        verdict = self._judge(builder, leases, now)
        if verdict is None:
            return False
        uow.builders.save(self._wanted(builder, verdict, now))
        uow.builders.make_due(builder_id, now)
        return True

    def _wanted(self, builder: Builder, verdict: IdleAction, now: datetime) -> Builder:
        if verdict is IdleAction.STOP:
            reason = stop_reason(builder)
            wanted = replace(builder, desired=Desired.STOPPED, stop_kind=StopKind.IDLE)
        else:
            reason = freeze_reason(self._freeze_after or timedelta())
            wanted = replace(builder, asleep_since=now)
        return replace(wanted, cause=Cause(SYSTEM, reason), updated_at=now)


async def note(application: Application, within: float = inf) -> None:
    """Record visits: builders that were visited in the last seconds get a new ``last_active_at``."""
    activity = await application.previews.activity()
    recent = {host: one for host, one in activity.items() if one.open_connections or one.idle_seconds <= within}
    if recent:
        now = application.clock.now()
        news = await application.store.read(lambda uow: _changed_activity(uow, application, recent, now))
        # Each by itself: a transaction that holds one of them may be about to take another.
        for host, at in news.items():
            await application.store.write(partial(_write, host=host, at=at))


def _changed_activity(
    uow: UnitOfWork, application: Application, recent: Mapping[str, PreviewActivity], now: datetime
) -> Mapping[str, datetime]:
    """Return the last visit of each host whose builder has none recorded that is about as late."""
    news = {}
    for host, builder in uow.builders.by_hosts(list(recent)).items():
        activity = recent[host]
        at = now if activity.open_connections else now - timedelta(seconds=activity.idle_seconds)
        if not is_recorded(application, builder, at):
            news[host] = at
    return news


def _write(uow: UnitOfWork, host: str, at: datetime) -> None:
    builder = uow.builders.by_host(host, lock=True)
    if builder is not None:
        used(uow, builder, at)


#: After visitors could not be heard, or what they want could not be recorded: seconds until the next try, of so many.
RETRY_INTERVAL, TRIES = 1.0, 30


async def watch(application: Application) -> None:
    """Wake visited builders until cancelled."""
    async with asyncio.TaskGroup() as group:

        async def watch_visits() -> None:
            async for host in application.previews.visitors():
                group.create_task(_wake(application, host))

        await every(RETRY_INTERVAL, watch_visits, event="visit watcher")


async def _wake(application: Application, host: str) -> None:
    """Retry for as long as a visitor may wait: the proxy reports a host only once."""
    for _ in range(TRIES):
        try:
            await wake.visited(application, host)
        except Exception:
            log.warning("wake failed, retrying in 1 s host=%s", host, exc_info=True)
        else:
            return
        await asyncio.sleep(RETRY_INTERVAL)
