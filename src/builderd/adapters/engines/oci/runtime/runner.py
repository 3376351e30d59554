"""Build sandboxes: a read-only root, one command, its output streamed line by line, nothing left afterwards."""

from __future__ import annotations

import asyncio
import contextlib
import os
from pathlib import Path

from builderd.adapters.engines.oci.network.host_files import CA_BUNDLE
from builderd.adapters.engines.oci.runtime.apps import INIT
from builderd.adapters.engines.oci.runtime.command import Runtime
from builderd.adapters.engines.oci.runtime.log_records import MAX_LINE, lines_of
from builderd.adapters.engines.oci.runtime.records import Record
from builderd.adapters.engines.oci.runtime.reports import oom_cause
from builderd.adapters.engines.oci.runtime.root import Root
from builderd.adapters.engines.oci.runtime.run import Run
from builderd.adapters.engines.oci.runtime.runs import Runs
from builderd.adapters.engines.oci.storage.builds import BuildExit, BuildRun, Output
from builderd.domain.errors import EngineUnavailable
from builderd.domain.sandboxes import EndCause

_LOG_LIMIT = 10_000_000
_TMP_BYTES = 1 << 30
#: Of a build that nobody waits for: with its two CPUs an eighth of an app with one.
BACKGROUND_WEIGHT = 1 / 16
_TAIL_SECONDS = 0.05
#: Bytes of a log after which others have their turn, a matter of milliseconds.
PIECE_BYTES = 64 << 10
#: Line in place of output that was lost when the log was rotated.
LEFT_OUT = "… (what the log had no room for is left out here)"


class Runner:
    """Runner of builds. ``lowers`` are the layers of a build's root, the topmost first."""

    def __init__(self, runs: Runs, runtime: Runtime, lowers: tuple[Path, ...]) -> None:
        self._runs = runs
        self._runtime = runtime
        self._lowers = lowers

    async def run_build(self, run: BuildRun, output: Output) -> BuildExit:
        """Run it to its end. When this returns, raises or is cancelled, no process of it is left.

        Raises ``EngineUnavailable`` when it cannot be started, and where its monitor (conmon) was killed under it.
        """
        return await self.run(self._make_run(run), run.timeout_seconds, output)

    async def run(self, run: Run, timeout_seconds: float, output: Output) -> BuildExit:
        """Run any sandbox that is not an app to its end; it must log to ``log_of`` its id."""
        record = await self._runs.start(run)
        try:
            return await self._follow(record, timeout_seconds, output)
        finally:
            await asyncio.shield(self._runs.remove(record))

    def _make_run(self, run: BuildRun) -> Run:
        return Run(
            id=run.id,
            owner="",
            disk="",
            runtime=self._runtime,
            root=Root(self._lowers_of(run), run.binds),
            hostname="build",
            port=0,
            argv=[*INIT, *run.argv],
            env={"SSL_CERT_FILE": str(CA_BUNDLE), **run.env},
            cwd=run.cwd,
            user=0,
            cpu=run.cpu,
            cpu_weight=BACKGROUND_WEIGHT if run.is_background else 1.0,
            memory_bytes=run.memory,
            pids=run.processes,
            egress=run.network,
            log=self.log_of(run.id),
            log_limit=_LOG_LIMIT,
            tenant=run.tenant if run.network else "",
            tmpfs={"/tmp": min(_TMP_BYTES, run.memory), "/dev/shm": run.memory // 4},  # noqa: S108
        )

    def _lowers_of(self, run: BuildRun) -> tuple[Path, ...]:
        """Return the layers of its root: one of the run's own lies directly above the base."""
        return self._lowers if run.layer is None else (*self._lowers[:-1], run.layer, self._lowers[-1])

    def log_of(self, name: str) -> Path:
        """Return the log file of a build, removed with its folder."""
        return self._runs.records.folder(name) / "log"

    async def _follow(self, record: Record, timeout_seconds: float, output: Output) -> BuildExit:
        tail = Tail(self.log_of(record.id), output)
        telling = asyncio.ensure_future(tail.follow())
        try:
            in_time = await self._runs.exits.wait(record.id, timeout_seconds)
        finally:
            telling.cancel()
        if not in_time:
            await self._runs.clean(record)
        await tail.finish()
        ended = self._runs.records.exit(record.id)
        if ended is None and in_time:
            raise EngineUnavailable(
                "The command was cut off: its log monitor (conmon) was killed. Try again.", retry_after=1
            )
        oom = oom_cause(self._runs.records, self._runs.cgroups, record.id)
        code = ended.code if ended else 1
        if oom is EndCause.HOST_OUT_OF_MEMORY and in_time and code:
            raise EngineUnavailable(
                "The command was killed: the machine was out of memory, the command within its limit. The operator can "
                "end other programs, or give the machine more memory (free -m, dmesg).",
                retry_after=30,
            )
        return BuildExit(code, out_of_memory=oom is EndCause.OUT_OF_MEMORY and in_time, timed_out=not in_time)


class Tail:
    """Follower of a shim's log: passes its lines on as they are written."""

    def __init__(self, log: Path, output: Output) -> None:
        self._log = log
        self._output = output
        self._file = 0
        self._offset = 0

    async def follow(self) -> None:
        while True:
            await asyncio.sleep(_TAIL_SECONDS)
            self.pass_on()

    async def finish(self) -> None:
        """Pass on the rest of a log that is complete."""
        while self.pass_on(whole=True):  # noqa: ASYNC110
            await asyncio.sleep(0)

    def pass_on(self, *, whole: bool = False) -> bool:
        """Pass on the next piece of new output; return True when there was any. ``whole``: the log is complete.

        A flooding log is passed on late or with gaps: one that exceeds its limit is started again.
        """
        with contextlib.suppress(FileNotFoundError), self._log.open("rb") as log:
            number = os.fstat(log.fileno()).st_ino
            if self._file not in (0, number):
                self._offset = 0
                self._output(LEFT_OUT)
            self._file = number
            log.seek(self._offset)
            passed = 0
            for line, passed in lines_of(log.read(2 * MAX_LINE), 0, whole):
                self._output(line.text)
                if passed >= PIECE_BYTES:
                    break
            self._offset += passed
            return passed > 0
        return False
