"""Outcome of a run, and the route of an app that is up: recorded with the step that reached them.

A caller and a visitor wait for these. Each transaction of its own would add the store's round trip to their wait.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from datetime import datetime

from builderd.domain.builders import Builder, Status, StopKind
from builderd.domain.members import MemberAway
from builderd.domain.next_step import next_step
from builderd.domain.sandboxes import Sandbox
from builderd.domain.steps import Observation, SetRoute, Settle
from builderd.linux.threads import completed
from builderd.reconciler.core import transitions, version_transitions
from builderd.reconciler.core.observe import WorkItem
from builderd.reconciler.core.result import Result
from builderd.reconciler.core.transitions import Transition
from builderd.reconciler.stages.starting import last_lines
from builderd.services import backups
from builderd.services.application import Application
from builderd.store import UnitOfWork

log = logging.getLogger(__name__)


class Settling:
    """Opens routes and records outcomes with the application's ports."""

    def __init__(self, application: Application) -> None:
        self._app = application

    async def settle(self, item: WorkItem, observation: Observation, status: Status) -> Result:
        """Return the record of the outcome of the present run."""
        if status is Status.STOPPED:
            await self._drop_unrecorded(item.builder)
        now = self._app.clock.now()
        lines = await last_lines(self._app, observation.ends[-1]) if status is Status.FAILED else []

        def record(uow: UnitOfWork, builder: Builder) -> None:
            transition = Transition(uow, builder, self._app.prices, now)
            if not transitions.same_generation(builder, item.builder):
                return
            if status is Status.STOPPED:
                stopped(self._app, uow, builder, now)
                return
            sandbox = observation.sandbox or observation.ends[-1]
            if not builder.settled and sandbox.listening_at is None:
                seconds = (now - sandbox.created_at).total_seconds()
                transitions.stage_finished(transition, "start", seconds=seconds, ok=True)
            if status is Status.RUNNING:
                version_transitions.running(uow, builder, item.version, now)
            else:
                version_transitions.job_over(transition, item, status, sandbox, lines)

        return Result(record)

    async def _drop_unrecorded(self, builder: Builder) -> None:
        """Delete the disk of a builder that is stopped before it was recorded: nobody pays for it.

        This comes before the outcome, which nobody looks behind. A stop does not wait for a member that is away.
        """
        if builder.disk_is_made:
            return
        try:
            await self._app.engine.delete_disk(builder.disk)
        except MemberAway as error:
            log.warning("unrecorded disk not deleted builder=%s disk=%s error=%s", builder.id, builder.disk, error)

    async def listens(self, item: WorkItem, observation: Observation, sandbox: Sandbox) -> Result:
        """Open the route of a sandbox that can be reached, unless a gate comes first; record that it can.

        The outcome is recorded with it where no other step is left. A kill in between leaves an open route and a
        sandbox whose wait has not ended: the next service waits for it again, or closes the route.
        """
        is_over = await self._open_route(item, observation, sandbox)
        now, prices = self._app.clock.now(), self._app.prices

        def record(uow: UnitOfWork, builder: Builder) -> None:
            note_up(Transition(uow, builder, prices, now), item, sandbox)
            if is_over and transitions.same_generation(builder, item.builder):
                version_transitions.running(uow, builder, item.version, now)

        return Result(record, quiet=not is_over)

    async def _open_route(self, item: WorkItem, observation: Observation, sandbox: Sandbox) -> bool:
        """Set the route that comes next, if one does; return True if the run has its outcome then."""
        report = await self._app.engine.report(sandbox.id)
        seen = replace(observation, sandbox=sandbox, report=report)
        step = next_step(item.builder, seen)
        if report.alive and isinstance(step, SetRoute):
            # Not to be cut off by a newer desired state: paused requests go on before the proxy's map has the route.
            async with completed(self._app.previews.put(step.route)):
                pass
            step = next_step(item.builder, replace(seen, route=step.route))
        return step == Settle(Status.RUNNING)


def note_up(transition: Transition, item: WorkItem, sandbox: Sandbox) -> None:
    """Record a sandbox that can be reached."""
    transition.uow.sandboxes.save(sandbox)
    if transitions.same_generation(transition.builder, item.builder) and not transition.builder.settled:
        seconds = (transition.now - sandbox.created_at).total_seconds()
        transitions.stage_finished(transition, "start", seconds=seconds, ok=True)


def stopped(application: Application, uow: UnitOfWork, builder: Builder, now: datetime) -> None:
    """Record that a builder is stopped as wanted."""
    if builder.stop_kind is StopKind.IDLE:
        backups.keep_idle(uow, application, builder, now)
    version_transitions.mark_terminal(uow, builder, Status.STOPPED, builder.cause.reason, now)
