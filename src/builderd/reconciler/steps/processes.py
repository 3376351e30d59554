"""Further processes: start, await, stop, and record ends of the sandboxes beside the app's own.

Recorded: each start and end, from which on one sandbox more or less is billed; a crash, with what follows from it.
Left when killed: sandboxes of recorded ids, which the next look finds as they are.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from builderd.application import Application
from builderd.builders import candidates
from builderd.builders.model import MAX_EXITS, is_crash, is_given_up, recent_crashes
from builderd.events.model import SYSTEM
from builderd.qa.model import WORKER_ALIVE_SECONDS
from builderd.reconciler import record as transitions
from builderd.reconciler.failures import describe_end, restart_note
from builderd.reconciler.observe import WorkItem
from builderd.reconciler.record import Result, Transition
from builderd.reconciler.steps.await_listening import mark_up, wait_until_aged
from builderd.sandboxes.model import EndCause, Sandbox, SandboxEnd, process_label


async def await_process(app: Application, sandbox: Sandbox) -> Result:
    """Wait until it has lived as long as a worker must; the next look judges one that ended before."""
    check = await wait_until_aged(app, sandbox, WORKER_ALIVE_SECONDS)
    if check.ended is not None:
        return Result()
    return Result(lambda transition: mark_up(transition, sandbox), quiet=True, durable=False)


async def stop_processes(app: Application, sandboxes: Sequence[Sandbox]) -> Result:
    engine, grace = app.engine.sandboxes, app.limits.stop_grace
    reports = await asyncio.gather(*(engine.stop(one.id, grace) for one in sandboxes))

    def record(transition: Transition) -> None:
        for one, report in zip(sandboxes, reports, strict=True):
            end = report.end or SandboxEnd(EndCause.STOPPED, None, None)
            transitions.sandbox_ended(transition, one, end=end, report=report)

    async def remove() -> None:
        await asyncio.gather(*(engine.remove(one.id) for one in sandboxes))

    return Result(record, remove, quiet=True)


async def record_process_end(app: Application, item: WorkItem, sandbox: Sandbox) -> Result:
    report = await app.engine.sandboxes.report(sandbox.id)
    end = report.end or SandboxEnd(EndCause.UNKNOWN, None, None)

    def record(transition: Transition) -> None:
        transitions.sandbox_ended(transition, sandbox, end=end, report=report)
        if transitions.same_generation(transition.builder, item.builder):
            _crash_noted(transition, item, sandbox)

    return Result(record, lambda: app.engine.sandboxes.remove(sandbox.id), quiet=True)


def _crash_noted(transition: Transition, item: WorkItem, sandbox: Sandbox) -> None:
    """A process that ended by itself says in an event whether it is restarted or given up; the app's status stays."""
    uow, builder, now = transition.uow, transition.builder, transition.now
    own = [
        one
        for one in uow.sandboxes.of_generation(builder.id, builder.generation)
        if (one.process, one.number) == (sandbox.process, sandbox.number) and one.end and not one.replaced
    ]
    last = own[-1] if own else sandbox
    # While a new version starts, its failure says it.
    if last.end is None or not is_crash(last) or not builder.settled:
        return
    label, resources = process_label(sandbox), item.version.settings.resources
    details = {"process": label, "sandbox": sandbox.id, "version": sandbox.version, "cause": last.end.cause.value}
    kind, note = "process.restarting", restart_note(last.end, resources, len(recent_crashes(own, now)), MAX_EXITS)
    if is_given_up(own):
        how, name = describe_end(last.end, resources), f"{builder.name} --process {sandbox.process}"
        kind, note = "process.failed", f"ended {MAX_EXITS} times within 10 minutes, at last so: {how}"
        note += f"; see builderd logs {name}, then builderd restart {name}"
    candidates.record(uow, builder, kind, SYSTEM, f"{label}: {note}", now, **details)
