"""Release: wait for a version's release command, and judge its end.

It runs once on the disk of the version that takes over, before its app starts, as a sandbox of the builder's run.
Recorded: its end, and the version as released, or its deployment as failed.
Left when killed: the command runs on; the next try finds it by its id and waits for it, or reads its end, since the
engine never runs one sandbox twice. An end that is unknown, such as after a restart of the machine, fails the
deployment instead of running the command again.
"""

from __future__ import annotations

from dataclasses import replace

from builderd.application import Application
from builderd.core.errors import MachineFault, ReleaseFailed
from builderd.executions.service import hint_of
from builderd.qa.service import last_lines
from builderd.reconciler import record as transitions
from builderd.reconciler.failures import describe_end, quoted
from builderd.reconciler.observe import WorkItem
from builderd.reconciler.record import Result, Transition
from builderd.reconciler.steps.disk import discard_first_disk
from builderd.sandboxes.model import EndCause, Sandbox, SandboxEnd, SandboxReport
from builderd.tokens.limits import StartLimit

#: Seconds between two looks: often at first, since many releases are quick and visitors wait.
FIRST_PAUSE, LAST_PAUSE = 0.005, 0.1
#: Seconds after which looks are rarer.
QUICK = 1.0


async def await_release(app: Application, sandbox: Sandbox) -> Result:
    """Wait until the command ends; stop it when its time is over. The next look records the end.

    The time counts from its start, also over a restart of the service, and is twice as long beside a busy machine.
    """
    sandboxes, clock = app.engine.sandboxes, app.clock
    before = (clock.now() - (sandbox.started_at or sandbox.created_at)).total_seconds()
    limit = StartLimit(app.engine, clock, app.limits.release_timeout, before)
    while True:
        report = await sandboxes.report(sandbox.id)
        if not report.alive:
            return Result()
        if limit.left <= 0:
            await sandboxes.stop(sandbox.id, 0)
            return Result()
        await clock.sleep(FIRST_PAUSE if limit.seconds < QUICK else LAST_PAUSE)


async def record_release_end(
    app: Application, item: WorkItem, sandbox: Sandbox, report: SandboxReport | None
) -> Result:
    """Return the record of an ended release: the version may start, or its deployment has failed."""
    end = report.end if report and report.end else SandboxEnd(EndCause.UNKNOWN, None, None)
    now, begun = app.clock.now(), sandbox.started_at or sandbox.created_at
    seconds = max(0.0, ((end.at or now) - begun).total_seconds())
    failure = await _failure(app, item, sandbox, end, seconds)

    def record(transition: Transition) -> None:
        uow, builder = transition.uow, transition.builder
        transitions.sandbox_ended(transition, sandbox, end=end, report=report)
        # A stop may have given the version of this release up: then its end says nothing of the one to run now.
        is_its_own = sandbox.version == item.version.number
        wanted = is_its_own and transitions.still_wanted(builder, item.builder, item.version)
        if wanted and failure is None:
            released = uow.versions.require(item.builder.id, item.version.number)
            uow.versions.save(replace(released, released=True))
            transitions.stage_finished(transition, "release", seconds=seconds, ok=True)
            return
        if wanted and failure is not None:
            reason = failure.message
            transitions.stage_finished(transition, "release", seconds=seconds, ok=False, note=reason)
            transitions.failed(transition, item.version, code=failure.code, reason=reason, exit_code=end.exit_code)
        discard_first_disk(transition, sandbox)

    return Result(record, lambda: app.engine.sandboxes.remove(sandbox.id))


async def _failure(
    app: Application, item: WorkItem, sandbox: Sandbox, end: SandboxEnd, seconds: float
) -> ReleaseFailed | MachineFault | None:
    """Return why the version must not start, None after a release that succeeded."""
    if (end.cause, end.exit_code) == (EndCause.EXITED, 0):
        return None
    lines, settings = await last_lines(app, sandbox.id), item.version.settings
    command, how = f"The release command ({settings.release})", describe_end(end, settings.resources)
    # A stop for another reason gives this version up: then its failure is not recorded.
    if end.cause not in (EndCause.EXITED, EndCause.OUT_OF_MEMORY, EndCause.STOPPED):
        return MachineFault(
            f"{command} was cut off ({how}), and is not run again by itself. "
            f"Look at what it did outside of its disk, then deploy again.{quoted(lines)}"
        )
    why = f"did not end within {seconds:.0f} s (limits.release_timeout), and was stopped."
    if end.cause is EndCause.OUT_OF_MEMORY:
        why = f"was {how}. Give it more with resources.memory."
    elif end.cause is EndCause.EXITED:
        why = f"failed: it {how}."
    hint = await hint_of(app, item.version, lines)
    more = f"All of its lines: builderd logs {item.builder.name} --stream release."
    parts = [f"{command} {why}", hint, more, 'To deploy without it: release = "".']
    return ReleaseFailed(" ".join(part for part in parts if part) + quoted(lines))
