"""The QA gate of a version that is up: judge it before its call is answered, and watch it for a second afterwards.

Recorded: the verdict and the stage's end; a version that must pass and does not, as failed.
Left when killed: no verdict yet, so that the next try judges anew; a verdict whose watch was cut off stays.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from builderd.application import Application
from builderd.builders import candidates
from builderd.builders.model import Desired
from builderd.core.errors import QaFailed
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
    gate_failure,
    gate_passed,
)
from builderd.reconciler import record as transitions
from builderd.reconciler.observe import WorkItem
from builderd.reconciler.record import Record, Result, Transition
from builderd.sandboxes.model import MACHINE_CAUSES, EndCause, Sandbox
from builderd.tokens.limits import StartLimit
from builderd.versions.model import Version

log = logging.getLogger(__name__)

#: Causes of an end that the app itself is responsible for.
_OWN_ENDS = (EndCause.EXITED, EndCause.OUT_OF_MEMORY)
#: Seconds between two looks whether an app that was found on another port has opened its own.
PORT_WATCH_INTERVAL = 2.0


async def check_app(app: Application, watches: set[asyncio.Task[None]], item: WorkItem, sandbox: Sandbox) -> Result:
    """Judge the app; the result records the verdict."""
    begun = app.clock.now()
    is_quick = item.builder.job_type.must_listen and not item.version.settings.require_qa
    alive_after = QUICK_ALIVE_SECONDS if is_quick else ALIVE_SECONDS
    gate = await qa.judge(app, item.builder, item.version, sandbox, alive_after=alive_after)
    if not gate_passed(gate):
        end = (await app.engine.sandboxes.report(sandbox.id)).end
        if end is not None and end.cause in MACHINE_CAUSES:
            return Result()  # the next look restarts the app, and it is judged then
        if moves := await _moved(app, item, sandbox):
            return moves
    seconds = (app.clock.now() - begun).total_seconds()

    def record(transition: Transition) -> None:
        uow, builder = transition.uow, transition.builder
        if not transitions.still_wanted(builder, item.builder, item.version):
            return
        passed = gate_passed(gate)
        note = "passed" if passed else gate_failure(gate)
        transitions.stage_finished(transition, "qa", seconds=seconds, ok=passed, note=note)
        goes_on = passed or not item.version.settings.require_qa
        if not goes_on:
            transitions.failed(transition, item.version, code=QaFailed.code, reason=note)
        qa.record_gate(uow, builder.id, item.version.number, gate, transition.now)
        if goes_on and app.limits.qa_report and builder.job_type.must_listen:
            qa.want_report(uow, builder.id, item.version.number, SYSTEM, transition.now)

    is_watched = gate_passed(gate) and (is_quick or item.version.adopted_port is not None)
    watch = partial(_start_watch, app, watches, item, sandbox, gate)
    return Result(record, watch if is_watched else transitions.nothing)


async def _moved(app: Application, item: WorkItem, sandbox: Sandbox) -> Result | None:
    """Return the record that an app, found on another port before, listens on the one of its settings by now."""
    own = item.version.settings.port
    if item.version.adopted_port is None:
        return None
    listening = await app.engine.sandboxes.listening(sandbox.id, own)
    if not listening.reachable(own):
        return None

    def record(transition: Transition) -> None:
        transitions.leads_to(transition, item.version, own, listening)
        transition.uow.builders.make_due(item.builder.id, transition.now)

    return Result(record)


async def _start_watch(
    app: Application, watches: set[asyncio.Task[None]], item: WorkItem, sandbox: Sandbox, gate: tuple[Check, ...]
) -> None:
    async def watch() -> None:
        try:
            await _watch(app, item, sandbox, gate)
            if item.version.adopted_port is not None:
                await _watch_port(app, item, sandbox)
        except Exception:
            log.warning("watching a new version failed, its verdict stays", exc_info=True)

    task = asyncio.create_task(watch())
    watches.add(task)
    task.add_done_callback(watches.discard)


async def _watch(app: Application, item: WorkItem, sandbox: Sandbox, gate: tuple[Check, ...]) -> None:
    """Turn the verdict to failed if the app dies by itself within ``WATCH_SECONDS`` of its answer."""
    await app.clock.sleep(WATCH_SECONDS - QUICK_ALIVE_SECONDS)
    report = await app.engine.sandboxes.report(sandbox.id)
    end = report.end
    if not report.alive and end is None:  # the engine has removed it
        stored = await app.store.read(lambda uow: uow.sandboxes.get(sandbox.id))
        end = stored.end if stored is not None else None
    if end is None or end.cause not in _OWN_ENDS:
        return
    lines = await qa.last_lines(app, sandbox.id)
    failed = check_ended(end, item.version.settings.resources, lines)
    checks = [*(check for check in gate if check.name is not CheckName.ALIVE), failed]

    def record(uow: UnitOfWork) -> None:
        builder = uow.builders.get(item.builder.id, lock=True)
        if builder is not None and builder.desired is not Desired.DELETED:
            transition = Transition(uow, builder, app.prices, app.clock.now())
            _revised(transition, item.version, checks)

    await app.store.write(record)
    app.signals.change(item.builder.id)


async def _watch_port(app: Application, item: WorkItem, sandbox: Sandbox) -> None:
    """Lead the preview to the port of the settings if the app opens it after another one, within its time to start.

    Such as one that reports on its state while it still loads a model.
    """
    limit = StartLimit(app.engine, app.clock, app.limits.start_seconds(item.version.settings))
    while limit.left > 0 and (await app.engine.sandboxes.report(sandbox.id)).alive:
        await app.clock.sleep(PORT_WATCH_INTERVAL)
        moved = await _moved(app, item, sandbox)
        if moved is None or moved.record is None:
            continue
        record = moved.record

        def apply(uow: UnitOfWork, record: Record = record) -> None:
            builder = uow.builders.get(item.builder.id, lock=True)
            if builder is not None and builder.desired is not Desired.DELETED:
                record(Transition(uow, builder, app.prices, app.clock.now()))

        await app.store.write(apply)
        app.signals.desired_changed(item.builder.id)
        return


def _revised(transition: Transition, version: Version, gate: Sequence[Check]) -> None:
    """Replace the verdict of a version that passed and then failed while it was watched; an event says so."""
    uow, builder, now = transition.uow, transition.builder, transition.now
    qa.record_gate(uow, builder.id, version.number, gate, now)
    details = {"version": version.number, "qa_passed": False}
    candidates.record(uow, builder, "qa.changed", SYSTEM, gate_failure(gate), now, **details)
    uow.builders.save(replace(builder, updated_at=now))
