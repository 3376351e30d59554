"""The release command: runs once on the disk of the version that takes over, before its app starts.

It is a sandbox of the builder's run, recorded before the engine starts it. A service that is started after a crash
finds it by its id and waits for it, or reads its end: the engine never runs one sandbox twice. An end that is unknown,
such as after a restart of the machine, fails the deployment instead of running the command again.
"""

from __future__ import annotations

from dataclasses import replace

from builderd.domain.errors import MachineFault, ReleaseFailed
from builderd.domain.failures import describe_end, quoted
from builderd.domain.sandboxes import EndCause, Sandbox, SandboxEnd, SandboxReport
from builderd.reconciler.core import transitions
from builderd.reconciler.core.observe import WorkItem
from builderd.reconciler.core.transitions import Result, Transition
from builderd.services.application import Application
from builderd.services.hints import hint_of
from builderd.services.limits import StartLimit
from builderd.services.qa import last_lines

#: Seconds between two looks: often at first, since many releases are quick and visitors wait.
FIRST_PAUSE, LAST_PAUSE = 0.005, 0.1
#: Seconds after which looks are rarer.
QUICK = 1.0


class Releases:
    """Waits for release commands and judges their ends."""

    def __init__(self, application: Application) -> None:
        self._app = application

    async def wait(self, sandbox: Sandbox) -> Result:
        """Wait until the command ends; stop it when its time is over. The next look records the end.

        The time counts from its start, also over a restart of the service, and is twice as long beside a busy machine.
        """
        sandboxes, clock = self._app.engine.sandboxes, self._app.clock
        before = (clock.now() - (sandbox.started_at or sandbox.created_at)).total_seconds()
        limit = StartLimit(self._app.engine, clock, self._app.limits.release_timeout, before)
        while True:
            report = await sandboxes.report(sandbox.id)
            if not report.alive:
                return Result()
            if limit.left <= 0:
                await sandboxes.stop(sandbox.id, 0)
                return Result()
            await clock.sleep(FIRST_PAUSE if limit.seconds < QUICK else LAST_PAUSE)

    async def record_end(self, item: WorkItem, sandbox: Sandbox, report: SandboxReport | None) -> Result:
        """Return the record of an ended release: the version may start, or its deployment has failed."""
        end = report.end if report and report.end else SandboxEnd(EndCause.UNKNOWN, None, None)
        now, begun = self._app.clock.now(), sandbox.started_at or sandbox.created_at
        seconds = max(0.0, ((end.at or now) - begun).total_seconds())
        failure = await self._failure(item, sandbox, end, seconds)

        def record(transition: Transition) -> None:
            uow, builder = transition.uow, transition.builder
            transitions.sandbox_ended(transition, sandbox, end=end, report=report)
            # A stop may have given the version of this release up: then its end says nothing of the one to run now.
            is_its_own = sandbox.version == item.version.number
            wanted = is_its_own and transitions.still_wanted(builder, item.builder, item.version)
            if wanted and failure is None:
                uow.versions.save(replace(transitions.as_stored(uow, item.version), released=True))
                transitions.stage_finished(transition, "release", seconds=seconds, ok=True)
                return
            if wanted and failure is not None:
                reason = failure.message
                transitions.stage_finished(transition, "release", seconds=seconds, ok=False, note=reason)
                transitions.failed(transition, item.version, code=failure.code, reason=reason, exit_code=end.exit_code)
            transitions.discard_first_disk(transition, sandbox)

        return Result(record, lambda: self._app.engine.sandboxes.remove(sandbox.id))

    async def _failure(
        self, item: WorkItem, sandbox: Sandbox, end: SandboxEnd, seconds: float
    ) -> ReleaseFailed | MachineFault | None:
        """Return why the version must not start, None after a release that succeeded."""
        if (end.cause, end.exit_code) == (EndCause.EXITED, 0):
            return None
        lines, settings = await last_lines(self._app, sandbox.id), item.version.settings
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
        hint = await hint_of(self._app, item.version, lines)
        more = f"All of its lines: builderd logs {item.builder.name} --stream release."
        parts = [f"{command} {why}", hint, more, 'To deploy without it: release = "".']
        return ReleaseFailed(" ".join(part for part in parts if part) + quoted(lines))
