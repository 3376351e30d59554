"""Freeze, thaw and stop a builder's sandbox, and record the end of one that has ended."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from datetime import datetime
from functools import partial

from builderd.domain.builders import Builder, Desired, StopKind
from builderd.domain.previews import Route
from builderd.domain.sandboxes import (
    EndCause,
    Sandbox,
    SandboxEnd,
    SandboxReport,
    SandboxState,
)
from builderd.reconciler.core import sandbox_transitions, transitions
from builderd.reconciler.core.observe import WorkItem
from builderd.reconciler.core.result import Result
from builderd.reconciler.core.transitions import Transition
from builderd.reconciler.stages import handover
from builderd.reconciler.stages.settling import stopped
from builderd.services.application import Application
from builderd.store import UnitOfWork

log = logging.getLogger(__name__)


class Stopping:
    """Steps that put a sandbox to rest or wake it. Removals continue in the background."""

    def __init__(self, application: Application) -> None:
        self._app = application
        self._removals: set[asyncio.Task[None]] = set()

    async def freeze(self, item: WorkItem, sandbox: Sandbox, before: SandboxReport | None) -> Result:
        if await self._visited(item):
            return self._abort_freeze(item)
        report = await self._app.engine.freeze(sandbox.id)
        if report.state is not SandboxState.FROZEN:
            return Result()  # the next look says what became of it
        at, prices = report.frozen_at or self._now(), self._app.prices

        def record(uow: UnitOfWork, builder: Builder) -> None:
            sandbox_transitions.caught_up(uow, builder, prices, sandbox, before)
            sandbox_transitions.frozen(uow, builder, prices, sandbox, at)

        return Result(record)

    async def thaw(self, sandbox: Sandbox, route: Route, before: SandboxReport | None) -> Result:
        report = await self._app.engine.thaw(sandbox.id)
        if not report.alive:
            return Result()  # the next look says what became of it
        await self._app.previews.put(route)
        at, prices = report.thawed_at or self._now(), self._app.prices

        def record(uow: UnitOfWork, builder: Builder) -> None:
            sandbox_transitions.caught_up(uow, builder, prices, sandbox, before)
            sandbox_transitions.thawed(uow, builder, prices, sandbox, at)

        return Result(record)

    async def stop(self, item: WorkItem, sandbox: Sandbox, before: SandboxReport | None, *, drain: bool) -> Result:
        builder, grace = item.builder, self._app.limits.stop_grace
        if builder.stop_kind is StopKind.IDLE and builder.desired is Desired.STOPPED and await self._visited(item):
            return self._abort_freeze(item)
        if drain:
            grace = handover.grace(grace, await handover.drained(self._app, builder.host))
        report = await self._app.engine.stop(sandbox.id, grace)
        end = report.end or SandboxEnd(EndCause.STOPPED, None, None)
        settles = builder.desired is Desired.STOPPED
        ended = self._ended(item, sandbox, end, report, before, settles=settles)
        if not drain and not settles:
            return ended
        # Visitors wait for what comes next, and a caller for the outcome, and not for this.
        return replace(ended, afterwards=partial(self._remove_meanwhile, sandbox))

    def record_end(self, item: WorkItem, sandbox: Sandbox, report: SandboxReport | None) -> Result:
        end = report.end if report and report.end else SandboxEnd(EndCause.UNKNOWN, None, None)
        return self._ended(item, sandbox, end, report, report)

    def _ended(
        self,
        item: WorkItem,
        sandbox: Sandbox,
        end: SandboxEnd,
        report: SandboxReport | None,
        before: SandboxReport | None,
        *,
        settles: bool = False,
    ) -> Result:
        """Return the record of its end; ``settles``: nothing else is left to do for a builder that is to be stopped.

        ``before`` is what the engine said before it was stopped: that thaws it, which is no turn of its own.
        """
        now, prices = self._now(), self._app.prices

        def record(uow: UnitOfWork, builder: Builder) -> None:
            transition = Transition(uow, builder, self._app.prices, now)
            sandbox_transitions.caught_up(uow, builder, prices, sandbox, before)
            sandbox_transitions.sandbox_ended(transition, sandbox, end=end, report=report)
            builder = sandbox_transitions.clear_sleep(uow, builder)
            if sandbox.release:
                sandbox_transitions.discard_first_disk(transition, sandbox)
            elif end.cause is not EndCause.STOPPED and transitions.same_generation(builder, item.builder):
                sandbox_transitions.crash_noted(uow, builder, item, replace(sandbox, end=end), now)
            if settles and not sandbox.release and not builder.settled and _is_as_chosen(builder, item.builder):
                stopped(self._app, uow, builder, now)

        return Result(record, lambda: self._app.engine.remove(sandbox.id))

    async def close(self) -> None:
        """Wait for the removals that go on in the background."""
        await asyncio.gather(*self._removals, return_exceptions=True)

    async def _visited(self, item: WorkItem) -> bool:
        """Return whether the preview has open connections, let in before it began to hold requests."""
        activity = (await self._app.previews.activity()).get(item.builder.host)
        return activity is not None and activity.open_connections > 0

    def _abort_freeze(self, item: WorkItem) -> Result:
        """Abort going to sleep: the builder is in use."""
        now = self._now()

        def record(uow: UnitOfWork, builder: Builder) -> None:
            same = builder.stop_kind is item.builder.stop_kind
            if same and transitions.same_generation(builder, item.builder):
                sandbox_transitions.abort_freeze(uow, builder, now)

        return Result(record)

    async def _remove_meanwhile(self, sandbox: Sandbox) -> None:
        removal = asyncio.create_task(self._app.engine.remove(sandbox.id))
        self._removals.add(removal)
        removal.add_done_callback(self._removed)

    def _removed(self, removal: asyncio.Task[None]) -> None:
        self._removals.discard(removal)
        if not removal.cancelled() and removal.exception() is not None:
            log.warning("sandbox removal failed, retrying at the next sweep", exc_info=removal.exception())

    def _now(self) -> datetime:
        return self._app.clock.now()


def _is_as_chosen(builder: Builder, looked_at: Builder) -> bool:
    """Return True if the outcome and the closed route are still those that the stop was chosen for."""
    return transitions.same_generation(builder, looked_at) and builder.stop_kind is looked_at.stop_kind
