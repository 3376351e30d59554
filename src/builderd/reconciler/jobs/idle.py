"""Idle check: freeze builders that are not used, and auto-stop them after their interval."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial
from math import inf

from builderd.domain.builders import (
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
from builderd.domain.errors import BuilderdError
from builderd.domain.events import SYSTEM
from builderd.domain.ids import BuilderId, SandboxId
from builderd.domain.sandboxes import SandboxUsage
from builderd.reconciler.core.loops import every
from builderd.reconciler.jobs import visits
from builderd.services.application import Application
from builderd.services.wake import used
from builderd.store import UnitOfWork

#: How often it is checked what is used, in seconds; more often where things are frozen sooner.
INTERVAL = 5.0
LOOKS_PER_FREEZE = 4
#: Of readings of usage, in seconds: sampling takes one each ten.
MAX_AGE = 12.0
#: Two readings tell what an app did in the last moments where they are no further apart, in seconds.
PAIR_SECONDS = 15.0
#: Seconds by which two readings of visits overlap.
MARGIN = 1.0

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class CpuSample:
    """CPU seconds of a sandbox at a time, and since when it has used next to none. Times are those of ``passed``.

    ``is_exact``: read at that time. Another one may be older, and so tells nothing about the last moments.
    ``unclear_seconds``: the longest time between two readings since then in which it may have worked in bursts.
    """

    sandbox: SandboxId
    at: float
    cpu_seconds: float
    quiet_since: float
    is_exact: bool = True
    unclear_seconds: float = 0


class Idleness:
    """Idle check. Readings are kept in memory: after a restart of the service, idle builders sleep a little later."""

    def __init__(self, application: Application) -> None:
        self._app = application
        self._samples: dict[BuilderId, CpuSample] = {}
        #: Readings of builders that are about to be frozen, where those before may be old.
        self._exact: dict[BuilderId, CpuSample] = {}
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
        await visits.note(self._app, within)
        self._noted_at = begun
        candidates = await self._app.store.read(lambda uow: uow.builders.idle_candidates())
        await self._take_readings(candidates)
        now = self._app.clock.now()
        for builder in candidates:
            # One check ahead: a second reading of the CPU use follows then.
            soon = self._judge(builder, (), now, self.interval)
            if soon is IdleAction.FREEZE and not await self._is_quiet_now(builder, now):
                continue
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
        found = await self._app.engine.sandboxes.usages([one.id for one in sandboxes], self._max_age)
        if errors := [one for one in found.values() if isinstance(one, Exception)]:
            # Builders without a reading sleep later; the check of the others continues.
            log.warning("idle check skipped, usage unavailable builders=%d", len(errors), exc_info=errors[0])
        before, now = self._samples, self._app.clock.passed()
        self._exact = {builder: one for builder, one in self._exact.items() if builder in before}
        self._samples = {
            one.builder_id: self._compare(before.get(one.builder_id), _sample(one.id, used, now))
            for one in sandboxes
            if isinstance(used := found.get(one.id), SandboxUsage)
        }

    async def _is_quiet_now(self, builder: Builder, now: datetime) -> bool:
        """Return True if the CPU use of this moment is next to none, too, where the last reading may be old.

        That takes two readings by ``usage``, this check's and an earlier one's: ``usages`` may count in another way.
        Where it may have worked in bursts, one each check for so long that one of them would show.
        """
        last = self._samples[builder.id]
        if last.is_exact:
            return True
        leases = await self._app.store.read(lambda uow: uow.leases.of_builder(builder.id))
        if self._judge(builder, leases, now, self.interval) is None:
            return False
        sample, before = await self._read_now(builder.id, last.sandbox), self._exact.get(builder.id)
        if sample is None:
            return False
        if before and sample.at - before.at > PAIR_SECONDS:
            before = None
        sample = self._exact[builder.id] = self._compare(before, sample)
        quiet_for = sample.at - sample.quiet_since
        if before and not quiet_for:
            self._samples[builder.id] = replace(last, quiet_since=sample.at, unclear_seconds=0)
        return 0 < quiet_for >= last.unclear_seconds

    async def _read_now(self, builder: BuilderId, sandbox: SandboxId) -> CpuSample | None:
        try:
            used = await self._app.engine.sandboxes.usage(sandbox)
        except BuilderdError as error:
            log.warning("idle check skipped, usage unavailable builder=%s error=%s", builder, error)
            return None
        return _sample(sandbox, used, self._app.clock.passed()) if used else None

    def _compare(self, before: CpuSample | None, sample: CpuSample) -> CpuSample:
        """Return the sample with the time since which it is quiet; the one before where that is the later one."""
        if before is None or before.sandbox != sample.sandbox:
            return sample
        if sample.at <= before.at:
            return replace(before, is_exact=False)
        # Two readings that follow each other at once tell nothing about a part of a CPU.
        seconds = max(sample.at - before.at, self.interval)
        used, quiet_cpu = sample.cpu_seconds - before.cpu_seconds, self._app.limits.quiet_cpu
        if used > quiet_cpu * seconds:
            return sample
        # Spread evenly it is next to none; all in a few of these seconds it is not.
        unclear = seconds if used > quiet_cpu * PAIR_SECONDS else 0
        unclear = max(unclear, before.unclear_seconds)
        return replace(sample, quiet_since=before.quiet_since, unclear_seconds=unclear)

    @property
    def _max_age(self) -> float:
        """Age of readings that will do: those that sampling has just taken, but where apps are frozen soon."""
        return min(MAX_AGE, self._app.limits.freeze_after / LOOKS_PER_FREEZE)

    def _judge(self, builder: Builder, leases: Sequence[Lease], now: datetime, later: float = 0) -> IdleAction | None:
        """Judge the builder as it will be ``later`` seconds from now, if nothing happens."""
        sample = self._samples.get(builder.id)
        quiet_for = self._app.clock.passed() + later - sample.quiet_since if sample else 0
        at = now + timedelta(seconds=later)
        return idle_action(builder, leases, at, self._freeze_after, timedelta(seconds=quiet_for))

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


def _sample(sandbox: SandboxId, used: SandboxUsage, passed: float) -> CpuSample:
    at = passed - used.age_seconds
    return CpuSample(sandbox, at, used.cpu_seconds, at, is_exact=not used.age_seconds)
