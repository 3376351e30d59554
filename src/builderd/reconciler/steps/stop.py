"""Stop: end a sandbox, or record that one ended by itself; its remains are removed afterwards.

Recorded: the end with its cause, and only the disk is billed from then on; a crash, for the restart that follows.
Left when killed: a sandbox that has ended, which the next look records and the sweep removes.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from functools import partial

from builderd.application import Application
from builderd.builders import candidates
from builderd.builders.model import MAX_EXITS, Desired, JobType, Status, StopKind, recent_crashes
from builderd.events.model import SYSTEM
from builderd.reconciler import record as transitions
from builderd.reconciler.failures import restart_note
from builderd.reconciler.observe import WorkItem
from builderd.reconciler.record import Result, Transition
from builderd.reconciler.steps.disk import discard_first_disk
from builderd.reconciler.steps.rest import abort_freeze, caught_up, is_visited
from builderd.reconciler.steps.route import drained, grace
from builderd.sandboxes.model import EndCause, Sandbox, SandboxEnd, SandboxReport

log = logging.getLogger(__name__)


async def stop(
    app: Application,
    removals: set[asyncio.Task[None]],
    item: WorkItem,
    sandbox: Sandbox,
    before: SandboxReport | None,
    *,
    drain: bool,
) -> Result:
    builder, allowed = item.builder, app.limits.stop_grace
    if builder.stop_kind is StopKind.IDLE and builder.desired is Desired.STOPPED and await is_visited(app, item):
        return abort_freeze(item)
    if drain:
        allowed = grace(allowed, await drained(app, builder.host))
    report = await app.engine.sandboxes.stop(sandbox.id, allowed)
    end = report.end or SandboxEnd(EndCause.STOPPED, None, None)
    ended = _ended(app, item, sandbox, end, report, before)
    if not drain and builder.desired is not Desired.STOPPED:
        return ended
    # Visitors wait for the new version, and a caller for the outcome, but not for the removal.
    return replace(ended, afterwards=partial(_remove_meanwhile, app, removals, sandbox))


def record_end(app: Application, item: WorkItem, sandbox: Sandbox, report: SandboxReport | None) -> Result:
    end = report.end if report and report.end else SandboxEnd(EndCause.UNKNOWN, None, None)
    return _ended(app, item, sandbox, end, report, report)


def _ended(
    app: Application,
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
        caught_up(transition, sandbox, before)
        transitions.sandbox_ended(transition, sandbox, end=end, report=report)
        if builder.asleep_since is not None:
            builder = replace(builder, asleep_since=None)
            transition.uow.builders.save(builder)
        if sandbox.release:
            discard_first_disk(transition, sandbox)
        elif end.cause is not EndCause.STOPPED and transitions.same_generation(builder, item.builder):
            ended = replace(sandbox, end=end)
            _crash_noted(replace(transition, builder=builder), item, ended)

    return Result(record, lambda: app.engine.sandboxes.remove(sandbox.id))


def _crash_noted(transition: Transition, item: WorkItem, sandbox: Sandbox) -> None:
    """An app that was up and is being brought back says so in its reason and in an event; its status stays."""
    uow, builder, now = transition.uow, transition.builder, transition.now
    is_up = builder.desired is Desired.RUNNING and builder.status is Status.RUNNING
    if not is_up or builder.job_type is JobType.ONE_TIME or sandbox.end is None:
        return
    ends = uow.sandboxes.of_generation(builder.id, builder.generation)
    exits = len(recent_crashes([one for one in ends if not (one.process or one.replaced)], now))
    if exits >= MAX_EXITS:
        return  # it is given up
    note = restart_note(sandbox.end, item.version.settings.resources, exits, MAX_EXITS)
    details = {"sandbox": sandbox.id, "version": sandbox.version, "cause": sandbox.end.cause.value}
    candidates.record(uow, builder, "builder.restarting", SYSTEM, note, now, **details)
    uow.builders.save(replace(builder, status_reason=note, updated_at=now))


async def _remove_meanwhile(app: Application, removals: set[asyncio.Task[None]], sandbox: Sandbox) -> None:
    async def remove() -> None:
        try:
            await app.engine.sandboxes.remove(sandbox.id)
        except Exception:
            log.warning("sandbox removal failed, retrying at the next sweep", exc_info=True)

    removal = asyncio.create_task(remove())
    removals.add(removal)
    removal.add_done_callback(removals.discard)
