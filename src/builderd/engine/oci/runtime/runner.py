"""Builds and tools: a read-only root, one command, its output streamed line by line, nothing left afterwards.

Tools are trusted programs of the host, such as restic, that work on a disk. A disk is full of hostile names and links,
so a tool is confined like a build: a user namespace in which only the disk's owner means anything, system calls
filtered, limits, and no network unless it needs one. Neither has an owner in its record: a service that starts ends
what an earlier one left.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from builderd.core.errors import EngineUnavailable
from builderd.core.resources import GB
from builderd.dependencies.model import BUILD_RESOURCES
from builderd.engine.oci.network.host_files import CA_ENVIRONMENT
from builderd.engine.oci.runtime.launching import Runtime
from builderd.engine.oci.runtime.logs import MAX_LINE, lines_of
from builderd.engine.oci.runtime.records import Record, oom_cause
from builderd.engine.oci.runtime.run import INIT, Root, Run
from builderd.engine.oci.runtime.runs import Runs
from builderd.engine.oci.storage.base import APP_UID
from builderd.engine.oci.storage.disks import APP_OWNER, DISK_UID, Disks
from builderd.engine.oci.storage.layers import Bind, BuildExit, BuildRun, Output
from builderd.engine.port import TOOL_FOLDERS, Tool, ToolExit
from builderd.sandboxes.model import EndCause

_LOG_LIMIT = 10_000_000
_TMP_BYTES = min(1 << 30, BUILD_RESOURCES.memory_bytes)
_BUILD_PROCESSES = 512
#: What dpkg and the scripts of Debian's packages need, over the ids of the sandbox alone.
_PACKAGE_RIGHTS = ("CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_SETGID", "CAP_SETUID")
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
        # A layer of the run's own lies directly above the base.
        lowers = self._lowers if run.layer is None else (*self._lowers[:-1], run.layer, self._lowers[-1])
        return Run(
            id=run.id,
            runtime=self._runtime,
            root=Root(lowers, run.binds, run.scratch),
            hostname="build",
            argv=[*INIT, *run.argv],
            env={**CA_ENVIRONMENT, **run.env},
            cwd=run.cwd,
            user=0,
            cpu=BUILD_RESOURCES.cpu,
            memory_bytes=BUILD_RESOURCES.memory_bytes,
            pids=_BUILD_PROCESSES,
            egress=run.network,
            log=self.log_of(run.id),
            log_limit=_LOG_LIMIT,
            tenant=run.tenant if run.network else "",
            capabilities=_PACKAGE_RIGHTS if run.scratch else (),
            tmpfs={"/tmp": _TMP_BYTES, "/dev/shm": BUILD_RESOURCES.memory_bytes // 4},  # noqa: S108
        )

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


#: Programs of the host that may run as tools; they need no more of the base than its C library.
PROGRAMS = ("restic",)
_PATH = "/usr/local/bin:/usr/bin:/bin"
_FOLDER = "/usr/local/bin"
_CPU, _MEMORY, _PROCESSES = 2, 2 * GB, 256
_READ_ALL = ("CAP_DAC_READ_SEARCH",)


class Tools:
    """Implements ``ports.engine.Tools``. ``mount_points`` is the topmost layer of a tool's root, which is read-only.

    ``refuse_while_used`` raises ``InvalidState`` for a disk that a sandbox runs on.
    """

    def __init__(
        self,
        runner: Runner,
        runtime: Runtime,
        lowers: tuple[Path, ...],
        mount_points: Path,
        disks: Disks,
        refuse_while_used: Callable[[str], None],
    ) -> None:
        self._runner = runner
        self._runtime = runtime
        self._lowers = (mount_points, *lowers)
        self._mount_points = mount_points
        self._disks = disks
        self._refuse_while_used = refuse_while_used

    def open(self) -> None:
        """Make the mount points. Idempotent."""
        for folder in ("disk", *TOOL_FOLDERS, _FOLDER.lstrip("/")):
            (self._mount_points / folder).mkdir(mode=0o755, parents=True, exist_ok=True)
        for program in PROGRAMS:
            (self._mount_points / _FOLDER.lstrip("/") / program).touch(mode=0o644)

    async def run_tool(self, tool: Tool, output: Output) -> ToolExit:
        if tool.disk is not None and tool.writable:
            self._refuse_while_used(tool.disk)
        for folder in tool.folders.values():
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # its parent keeps other users out
            if folder.lstat().st_uid != APP_OWNER:
                os.chown(folder, APP_OWNER, APP_OWNER)
        run = self._make_run(secrets.token_hex(8), tool)
        ended = await self._runner.run(run, tool.timeout_seconds, output)
        store_full = bool(ended.exit_code) and tool.disk is not None and self._disks.is_stopped_by_store(tool.disk)
        return replace(ended, store_full=store_full)

    def _make_run(self, name: str, tool: Tool) -> Run:
        return Run(
            id=name,
            runtime=self._runtime,
            root=Root(self._lowers, (*_programs(tool), *self._binds(tool))),
            hostname=tool.hostname,
            argv=[*INIT, *tool.argv],
            env={"PATH": _PATH, "HOME": "/tmp", "LANG": "C.UTF-8", **CA_ENVIRONMENT, **tool.env},  # noqa: S108
            cwd="/tmp",  # noqa: S108
            user=APP_UID,
            cpu=_CPU,
            memory_bytes=_MEMORY,
            pids=_PROCESSES,
            egress=False,
            log=self._runner.log_of(name),
            log_limit=_LOG_LIMIT,
            tmpfs={"/tmp": _MEMORY // 2},  # noqa: S108
            capabilities=_READ_ALL if tool.reads_all else (),
            host_network=tool.network,
        )

    def _binds(self, tool: Tool) -> Iterator[Bind]:
        if tool.disk is not None:
            yield Bind(self._disks.app(tool.disk), "/disk", not tool.writable, DISK_UID)
        for name, folder in tool.folders.items():
            yield Bind(folder, f"/{name}", read_only=False, owner=DISK_UID)


def _programs(tool: Tool) -> Iterator[Bind]:
    for program in PROGRAMS:
        if program in tool.argv:
            path = shutil.which(program, path=_PATH)
            if path is None:
                raise EngineUnavailable(f"{program} is not installed on this machine: apt-get install {program}.")
            yield Bind(Path(path).resolve(), f"{_FOLDER}/{program}", read_only=True, owner=None)
