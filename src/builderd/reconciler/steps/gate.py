"""The QA gate of a version that is up: judged before its call is answered, and watched for a second afterwards."""

from __future__ import annotations

import asyncio
import logging
from functools import partial

from builderd.application import Application
from builderd.builders.model import Desired
from builderd.database.unit_of_work import UnitOfWork
from builderd.events.model import SYSTEM
from builderd.qa import service as qa
from builderd.qa.model import (
    ALIVE_SECONDS,
    QUICK_ALIVE_SECONDS,
    WATCH_SECONDS,
    Check,
    CheckName,
    check_ended,
    gate_passed,
)
from builderd.reconciler import record as transitions
from builderd.reconciler.observe import WorkItem
from builderd.reconciler.record import Result, Transition
from builderd.sandboxes.model import MACHINE_CAUSES, EndCause, Sandbox

log = logging.getLogger(__name__)

#: Causes of an end that the app itself is responsible for.
_OWN_ENDS = (EndCause.EXITED, EndCause.OUT_OF_MEMORY)


class Gate:
    """Judges apps with the application's ports. Keeps the tasks that watch them afterwards."""

    def __init__(self, application: Application) -> None:
        self._app = application
        self._watches: set[asyncio.Task[None]] = set()

    async def check(self, item: WorkItem, sandbox: Sandbox) -> Result:
        """Judge the app; the result records the verdict."""
        begun = self._app.clock.now()
        is_quick = item.builder.job_type.must_listen and not item.version.settings.require_qa
        alive_after = QUICK_ALIVE_SECONDS if is_quick else ALIVE_SECONDS
        gate = await qa.judge(self._app, item.builder, item.version, sandbox, alive_after=alive_after)
        if not gate_passed(gate):
            end = (await self._app.engine.sandboxes.report(sandbox.id)).end
            if end is not None and end.cause in MACHINE_CAUSES:
                return Result()  # the next look restarts the app, and it is judged then
        seconds = (self._app.clock.now() - begun).total_seconds()

        def record(transition: Transition) -> None:
            uow, builder = transition.uow, transition.builder
            if not transitions.still_wanted(builder, item.builder, item.version):
                return
            goes_on = transitions.qa_judged(transition, item.version, gate, seconds=seconds)
            if goes_on and self._app.limits.qa_report and builder.job_type.must_listen:
                qa.want_report(uow, builder.id, item.version.number, SYSTEM, transition.now)

        if is_quick and gate_passed(gate):
            return Result(record, partial(self._start_watch, item, sandbox, gate))
        return Result(record)

    async def _start_watch(self, item: WorkItem, sandbox: Sandbox, gate: tuple[Check, ...]) -> None:
        async def watch() -> None:
            try:
                await self._watch(item, sandbox, gate)
            except Exception:
                log.warning("watching a new version failed, its verdict stays", exc_info=True)

        task = asyncio.create_task(watch())
        self._watches.add(task)
        task.add_done_callback(self._watches.discard)

    async def _watch(self, item: WorkItem, sandbox: Sandbox, gate: tuple[Check, ...]) -> None:
        """Turn the verdict to failed if the app dies by itself within ``WATCH_SECONDS`` of its answer."""
        await self._app.clock.sleep(WATCH_SECONDS - QUICK_ALIVE_SECONDS)
        report = await self._app.engine.sandboxes.report(sandbox.id)
        end = report.end
        if not report.alive and end is None:  # the engine has removed it
            stored = await self._app.store.read(lambda uow: uow.sandboxes.get(sandbox.id))
            end = stored.end if stored is not None else None
        if end is None or end.cause not in _OWN_ENDS:
            return
        lines = await qa.last_lines(self._app, sandbox.id)
        failed = check_ended(end, item.version.settings.resources, lines)
        checks = [*(check for check in gate if check.name is not CheckName.ALIVE), failed]

        def record(uow: UnitOfWork) -> None:
            builder = uow.builders.get(item.builder.id, lock=True)
            if builder is not None and builder.desired is not Desired.DELETED:
                transition = Transition(uow, builder, self._app.prices, self._app.clock.now())
                transitions.qa_revised(transition, item.version, checks)

        await self._app.store.write(record)
        self._app.signals.change(item.builder.id)
