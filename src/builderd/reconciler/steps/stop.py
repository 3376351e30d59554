"""Freeze, thaw, stop and delete: a builder's sandbox, the record of its end, and its removal."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from functools import partial

from builderd.application import Application
from builderd.backups import service as backups
from builderd.builders.model import Desired, StopKind
from builderd.code import service as bundles
from builderd.core.ids import BuilderId, DiskId
from builderd.core.members import MemberAway
from builderd.reconciler import record as transitions
from builderd.reconciler.observe import WorkItem
from builderd.reconciler.record import Result, Transition
from builderd.reconciler.steps import start as starting
from builderd.sandboxes.model import EndCause, Sandbox, SandboxEnd, SandboxReport, SandboxState

log = logging.getLogger(__name__)


class Stopping:
    """Steps that put a sandbox to rest or wake it. Removals continue in the background."""

    def __init__(self, application: Application) -> None:
        self._app = application
        self._removals: set[asyncio.Task[None]] = set()

    async def freeze(self, item: WorkItem, sandbox: Sandbox, before: SandboxReport | None) -> Result:
        if await self._is_visited(item):
            return _abort_freeze(item)
        report = await self._app.engine.sandboxes.freeze(sandbox.id)
        if report.state is not SandboxState.FROZEN:
            return Result()  # the next look says what became of it

        def record(transition: Transition) -> None:
            transitions.caught_up(transition, sandbox, before)
            transitions.frozen(transition, sandbox, report.frozen_at or transition.now)

        return Result(record)

    async def thaw(self, sandbox: Sandbox, before: SandboxReport | None) -> Result:
        report = await self._app.engine.sandboxes.thaw(sandbox.id)
        if not report.alive:
            return Result()  # the next look says what became of it

        def record(transition: Transition) -> None:
            transitions.caught_up(transition, sandbox, before)
            transitions.thawed(transition, sandbox, report.thawed_at or transition.now)

        return Result(record)

    async def stop(self, item: WorkItem, sandbox: Sandbox, before: SandboxReport | None, *, drain: bool) -> Result:
        builder, grace = item.builder, self._app.limits.stop_grace
        if builder.stop_kind is StopKind.IDLE and builder.desired is Desired.STOPPED and await self._is_visited(item):
            return _abort_freeze(item)
        if drain:
            grace = starting.grace(grace, await starting.drained(self._app, builder.host))
        report = await self._app.engine.sandboxes.stop(sandbox.id, grace)
        end = report.end or SandboxEnd(EndCause.STOPPED, None, None)
        ended = self._ended(item, sandbox, end, report, before)
        if not drain and builder.desired is not Desired.STOPPED:
            return ended
        # Visitors wait for the new version, and a caller for the outcome, but not for the removal.
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
    ) -> Result:
        """Return the record of its end.

        ``before`` is what the engine said before it was stopped: that thaws it, which is no turn of its own.
        """

        def record(transition: Transition) -> None:
            builder = transition.builder
            transitions.caught_up(transition, sandbox, before)
            transitions.sandbox_ended(transition, sandbox, end=end, report=report)
            if builder.asleep_since is not None:
                builder = replace(builder, asleep_since=None)
                transition.uow.builders.save(builder)
            if sandbox.release:
                transitions.discard_first_disk(transition, sandbox)
            elif end.cause is not EndCause.STOPPED and transitions.same_generation(builder, item.builder):
                ended = replace(sandbox, end=end)
                transitions.crash_noted(replace(transition, builder=builder), item, ended)

        return Result(record, lambda: self._app.engine.sandboxes.remove(sandbox.id))

    async def close(self) -> None:
        """Wait for the removals that go on in the background."""
        await asyncio.gather(*self._removals, return_exceptions=True)

    async def _is_visited(self, item: WorkItem) -> bool:
        """Return whether the preview has open connections, let in before it began to pause requests."""
        activity = (await self._app.previews.activity()).get(item.builder.host)
        return activity is not None and activity.open_connections > 0

    async def _remove_meanwhile(self, sandbox: Sandbox) -> None:
        async def remove() -> None:
            try:
                await self._app.engine.sandboxes.remove(sandbox.id)
            except Exception:
                log.warning("sandbox removal failed, retrying at the next sweep", exc_info=True)

        removal = asyncio.create_task(remove())
        self._removals.add(removal)
        removal.add_done_callback(self._removals.discard)


def _abort_freeze(item: WorkItem) -> Result:
    """Abort going to sleep: the builder is in use."""

    def record(transition: Transition) -> None:
        same = transition.builder.stop_kind is item.builder.stop_kind
        if same and transitions.same_generation(transition.builder, item.builder):
            transitions.abort_freeze(transition)

    return Result(record)


class Forgetting:
    """Deletes what a deleted builder has; its disk is left for a last backup if it has backups."""

    def __init__(self, application: Application) -> None:
        self._app = application

    async def forget(self, item: WorkItem) -> Result:
        """Delete disks and logs; the record marks the builder as deleted. Raises what the engine raises."""
        engine, forgotten = self._app.engine, item.builder
        is_kept = forgotten.backup_interval_hours > 0 and await self._can_back_up(forgotten.disk)
        for disk in forgotten.disks[1:] if is_kept else forgotten.disks:
            await engine.disks.delete_disk(disk)
        await engine.logs.delete_logs(forgotten.id)

        def record(transition: Transition) -> None:
            if is_kept:
                backups.keep_last(transition.uow, self._app, transition.builder, transition.now)
            transitions.deleted(transition)

        return Result(record, partial(self._drop_bundles, forgotten.id))

    async def _can_back_up(self, disk: DiskId) -> bool:
        """Return True unless the disk is gone, or lies on a member that is away: earlier backups are kept then."""
        try:
            return await self._app.engine.disks.disk(disk) is not None
        except MemberAway:
            return False

    async def _drop_bundles(self, builder_id: BuilderId) -> None:
        versions = await self._app.store.read(lambda uow: uow.versions.list(builder_id))
        for bundle_hash in {version.bundle_hash for version in versions}:
            await bundles.drop_unused(self._app, bundle_hash)
