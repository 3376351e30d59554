"""Processes beside a running app.

Each begins at a gate that waits until the process is in a group of its own, so that every process it ever
starts, daemons among them, can be found and killed when its time is over.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import secrets
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from builderd.core.errors import EngineUnavailable, InvalidState, ValidationFailed
from builderd.core.loops import counted
from builderd.engine.oci.runtime import launching
from builderd.engine.oci.runtime.cgroups import INNER
from builderd.engine.oci.runtime.creation import OOM_SCORE, make_process
from builderd.engine.oci.runtime.launching import Ended, Program, runtime_mounts
from builderd.engine.oci.runtime.records import Record
from builderd.engine.oci.runtime.runs import Runs
from builderd.engine.oci.runtime.streams import (
    Console,
    Ends,
    Inlet,
    Outlet,
    duplicate,
    open_pipes,
    open_terminal,
    resize,
)
from builderd.executions.model import KILLED_EXIT_CODE, TERM, ProcessSpec, Window
from builderd.linux.atomic_files import write_json
from builderd.linux.processes import open_files

#: Byte by which the gate reports that it runs, and again that it was released; output before it is discarded.
_READY = b"\x06"
#: Maximum bytes before the gate's byte: a hostile process may write without end.
_MAX_READY_BYTES = 64 << 10
#: Byte by which the gate reports a missing working directory.
_NO_FOLDER = b"\x15"
#: The release is a line of input, which a terminal echoes: so the gate reports a second time.
_GATE = (
    r"""cd -- "$0" 2>/dev/null || { printf '\025'; exit 1; }; """
    r"""printf '\006'; read -r _ && printf '\006' && exec "$@" """
)
#: Joins the streams inside: runc copies each stream separately and would change their order.
_JOIN = "exec 2>&1; "
#: ^D
_END_OF_INPUT = b"\x04"
_START_SECONDS = 30.0
#: Timeout for a killed process to get a pid, and to be gone.
_KILL_SECONDS = 2.0
#: Status of runsc's own failures, and how long the end of a sandbox may show after one.
_RUNSC_FAILED, _GONE_SECONDS = 128, 1.0
log = logging.getLogger(__name__)

#: Beginning of the names of programs with ``ProcessSpec.outlives_service``.
OUTLIVES = f"{INNER}session-"
#: Grace time of a process after its streams were closed.
HANG_UP_SECONDS = 1.0


class Execution:
    """One process in one sandbox. Implements ``ports.engine.Process``."""

    def __init__(self, runs: Runs, record: Record, spec: ProcessSpec, name: str | None = None) -> None:
        self._runs = runs
        self._record = record
        self._spec = spec
        self._runtime = runs.commands.runtime(record)
        prefix = OUTLIVES if spec.outlives_service else INNER
        self._name = name or f"{prefix}{secrets.token_hex(4)}"
        self._folder = runs.bundle(record.id)
        self._pid_file = self._folder / f"{self._name}.pid"
        self._document = self._folder / f"{self._name}.json"
        #: Set until the process is launched.
        self._ended: asyncio.Future[Ended] = asyncio.get_running_loop().create_future()
        self._ended.set_result(Ended(0))
        self._input: Inlet | None = None
        self._output: Outlet | None = None
        self._errors: Outlet | None = None
        self._terminal: int | None = None
        self._first = b""
        self._in_group = False
        #: True when the runtime's own command was killed because nothing else ended it.
        self._abandoned = False

    # Its life

    async def begin(self) -> None:
        """Start the program; on failure nothing of it is left. Raises what ``Engine.open_process`` does."""
        try:
            write_json(self._document, self._process(self._spec.argv))
            await self._launch()
            await self._pass_the_gate()
        except FileNotFoundError:
            await asyncio.shield(self.end(0))
            raise InvalidState("The sandbox does not run.") from None
        except BaseException:
            await asyncio.shield(self.end(0))
            raise

    async def _launch(self) -> None:
        window = self._spec.window
        if window is None:
            self._use(open_pipes(joined=self._spec.joined))
        elif self._runtime.name == "crun":
            await self._receive_terminal(window)
        else:
            ends = open_terminal(window)
            self._terminal = ends.read
            self._use(ends)

    async def _receive_terminal(self, window: Window) -> None:
        """Pass the terminal over: crun's copying between two terminals would lose the end of a long output."""
        console = Console(self._folder / f"{self._name}.tty")
        try:
            complaints, stderr = os.pipe2(os.O_CLOEXEC)  # the runtime's own messages
            self._run({2: stderr}, console.path)
            self._errors = Outlet(complaints, self._ended)
            self._terminal = await console.receive(window, self._ended)
        finally:
            console.close()
        if self._terminal is not None:
            self._output = Outlet(self._terminal, self._ended)
            self._input = Inlet(duplicate(self._terminal), self._ended)

    def _use(self, ends: Ends) -> None:
        self._run(ends.given)
        self._input, self._output = Inlet(ends.write, self._ended), Outlet(ends.read, self._ended)
        self._errors = None if ends.errors is None else Outlet(ends.errors, self._ended)

    def _run(self, descriptors: dict[int, int], console: Path | None = None) -> None:
        argv = launching.execute(self._runtime, self._record.id, self._document, self._pid_file, console)
        # A runtime that copies between two terminals gets SIGWINCH from the kernel.
        terminal = self._spec.window is not None and console is None
        mounts = runtime_mounts(self._runtime)
        # crun ignores oomScoreAdj of the document: the process inherits the score of the runtime.
        program = Program(argv, COMMAND_ENV, mounts=mounts, terminal=terminal, oom_score=OOM_SCORE, name=self._name)
        self._ended = asyncio.ensure_future(self._runs.launcher.run(program, descriptors))

    def _process(self, argv: tuple[str, ...]) -> dict[str, Any]:
        """Return the process document: the app's environment and user, and another program."""
        app = json.loads((self._folder / "config.json").read_text())["process"]
        env = dict(entry.split("=", 1) for entry in app["env"])
        if self._spec.window:
            env["TERM"] = TERM
        env |= self._spec.env
        if self._runtime.is_gvisor:
            env[MARK] = self._name
        gate = ["/bin/sh", "-c", _JOIN * self._spec.joined + _GATE, self._spec.folder, *argv]
        return make_process(gate, env, app["user"]["uid"], open_files(), terminal=self._spec.window is not None)

    async def _pass_the_gate(self) -> None:
        try:
            async with asyncio.timeout(_START_SECONDS):
                await self._read_until_ready()
                if not await self._enter_group():
                    raise InvalidState("The sandbox has ended.")
                await self.write(b"\n")
                await self._read_until_ready()
        except TimeoutError as error:
            raise EngineUnavailable(
                "The command could not be started in time: the machine is overloaded.", retry_after=10
            ) from error

    async def _read_until_ready(self) -> None:
        """Wait for the gate's byte. Raises ``InvalidState`` with the runtime's message when none comes."""
        received = self._first
        while _READY not in received:
            if len(received) > _MAX_READY_BYTES:
                raise InvalidState("The command could not be started: something in the sandbox floods its output.")
            if received.endswith(_NO_FOLDER):
                raise ValidationFailed({"cwd": [f"there is no folder {self._spec.folder} in the sandbox"]})
            piece = await self._output.read() if self._output else b""
            if not piece:
                complaint = received + (await self._errors.read() if self._errors else b"")
                raise InvalidState(f"The command could not be started: {complaint.decode(errors='replace').strip()}")
            received += piece
        self._first = received.partition(_READY)[2]

    async def _enter_group(self) -> bool:
        """Move the gate into a control group of its own; return False when the sandbox has ended."""
        if self._runtime.is_gvisor:
            return True
        while not (self._pid_file.exists() and (pid := self._pid_file.read_text())):  # noqa: ASYNC110
            await asyncio.sleep(0.0005)
        try:
            self._runs.cgroups.enter_inner(self._record.id, self._name, int(pid))
        except (FileNotFoundError, ProcessLookupError):
            return False
        self._in_group = True
        return True

    async def end(self, timeout: float = HANG_UP_SECONDS) -> None:
        """Close the streams, then kill the process if it does not end.

        Under gVisor only the runtime's own command notices a closed stream, so the process is killed at once.
        """
        try:
            if self._runtime.is_gvisor and not self._ended.done():
                with contextlib.suppress(EngineUnavailable):
                    await kill_marked(self._runs, self._record, self._name)
        finally:
            for stream in (self._input, self._output, self._errors):
                if stream:
                    stream.close()
            self._input = self._output = self._errors = self._terminal = None
        if not self._ended.done():
            await asyncio.wait({self._ended}, timeout=timeout)
        with contextlib.suppress(EngineUnavailable):
            await self.kill()
        self._document.unlink(missing_ok=True)
        self._pid_file.unlink(missing_ok=True)
        if not self._runtime.is_gvisor:
            self._runs.cgroups.discard_inner(self._record.id)

    # The port

    async def read(self) -> bytes:
        if self._first:
            first, self._first = self._first, b""
            return first
        return await self._output.read() if self._output else b""

    async def read_errors(self) -> bytes:
        return await self._errors.read() if self._errors and not self._spec.window else b""

    async def write(self, data: bytes) -> None:
        if self._input:
            await self._input.write(data)

    def close_input(self) -> None:
        if self._terminal is None:
            if self._input:
                self._input.close()
        else:
            with contextlib.suppress(OSError):
                os.write(self._terminal, _END_OF_INPUT)

    def resize(self, window: Window) -> None:
        if self._terminal is not None:
            resize(self._terminal, window)

    async def wait(self) -> int:
        """Return the exit code. Raises ``EngineUnavailable`` when the runtime's command was killed on the host."""
        if not self._ended.done():
            await asyncio.wait({self._ended})
        if self._is_cut_off:
            raise EngineUnavailable(
                "The command was cut off: the process that ran it on the host was killed. Try again."
            )
        status = self._ended.result().status
        # runsc fails when the sandbox ends while runsc waits for the program.
        failed = status == _RUNSC_FAILED and self._runtime.is_gvisor
        if failed and await self._runs.exits.wait(self._record.id, _GONE_SECONDS):
            return KILLED_EXIT_CODE
        return status if status >= 0 else 128 - status

    @property
    def _is_cut_off(self) -> bool:
        """Return True when the runtime's command or the launcher was killed while the program continues.

        The runtime reports a killed program by a status above 128, never by a signal of its own.
        """
        if self._abandoned or not self._ended.done():
            return False
        return self._ended.exception() is not None or self._ended.result().status < 0

    async def kill(self) -> None:
        if not self._ended.done() or self._is_cut_off:
            if self._runtime.is_gvisor:
                await kill_marked(self._runs, self._record, self._name)
            else:
                # An unmoved gate is moved first. Processes in device waits die later.
                with contextlib.suppress(TimeoutError):
                    if not self._in_group:
                        await asyncio.wait_for(self._enter_group(), _KILL_SECONDS)
                    await asyncio.to_thread(self._runs.cgroups.kill, f"{self._record.id}/{self._name}")
            await asyncio.wait({self._ended}, timeout=_KILL_SECONDS)
        if not self._ended.done():
            # A process that the kill missed continues in its sandbox; nothing of it is left on the host.
            self._abandoned = True
            await self._runs.launcher.kill(self._name)
            await asyncio.wait({self._ended}, timeout=_KILL_SECONDS)
        if not self._ended.done():
            raise EngineUnavailable("The command does not end: its runtime waits for a device.", retry_after=30)
        self._ended.result()

    async def end_left_over(self) -> None:
        """Kill the command of this name, which another service started, unless it outlives that."""
        if self._name.startswith(OUTLIVES):
            pass
        elif self._runtime.is_gvisor:
            while not await kill_marked(self._runs, self._record, self._name):  # noqa: ASYNC110
                await asyncio.sleep(1)
        else:
            await asyncio.to_thread(self._runs.cgroups.kill, f"{self._record.id}/{self._name}")
            self._runs.cgroups.discard_inner(self._record.id)
        self._document.unlink(missing_ok=True)
        self._pid_file.unlink(missing_ok=True)


#: Environment of the runtime's own command.
COMMAND_ENV = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
#: Variable of a command's environment with its name.
MARK = "BUILDERD_EXEC"
#: Timeout of the command that kills.
_KILLER_SECONDS = 10.0
#: Two rounds, for children forked during the first one.
_KILL_MARKED = r"""
for round in 1 2; do
  for process in /proc/[0-9]*; do
    if tr '\0' '\n' <"$process/environ" 2>/dev/null | grep -qxF "$0"; then kill -KILL "${process#/proc/}"; fi
  done
done"""


async def kill_marked(runs: Runs, record: Record, name: str) -> bool:
    """Kill the command of this name and its children. Return False when the killer did not end in time.

    A process that took the variable off is not found, and where no more processes may be started nothing is. With the
    sandbox all of them are gone.
    """
    folder = runs.bundle(record.id)
    document = folder / f"{name}.kill.json"
    argv = ["/bin/sh", "-c", _KILL_MARKED, f"{MARK}={name}"]
    try:
        user = json.loads((folder / "config.json").read_text())["process"]["user"]["uid"]
        write_json(document, make_process(argv, COMMAND_ENV, user, open_files()))
    except FileNotFoundError:
        return True
    pid_file = document.with_suffix(".pid")
    runtime = runs.commands.runtime(record)
    try:
        killer = launching.execute(runtime, record.id, document, pid_file)
        program = Program(killer, COMMAND_ENV, mounts=runtime_mounts(runtime), name=document.stem)
        return (await asyncio.wait_for(runs.launcher.run(program), _KILLER_SECONDS)).status == 0
    except TimeoutError:
        await runs.launcher.kill(document.stem)
        return False
    finally:
        document.unlink(missing_ok=True)
        pid_file.unlink(missing_ok=True)


#: Time to kill a command that an earlier service left; the next service tries again.
_LEFT_OVER_SECONDS = 30.0
#: Open commands of one sandbox: each has pipes on the host, which no limit of the sandbox counts.
MAX_OPEN = 64


@contextlib.asynccontextmanager
async def execution(runs: Runs, record: Record, spec: ProcessSpec) -> AsyncIterator[Execution]:
    """Run a command in the sandbox while the context lasts."""
    begun = Execution(runs, record, spec)
    await begun.begin()
    try:
        yield begun
    finally:
        await asyncio.shield(begun.end())


async def end_left_over(runs: Runs, record: Record) -> None:
    """Kill commands that were open when an earlier service was killed: nobody reads them, and their timeouts are gone.

    The document of a command is removed at its end, so what an ended command left in the background goes on; so does
    what outlives the service.
    """
    if not runs.is_running(record) or runs.freezing.is_frozen(record):
        return
    for document in runs.bundle(record.id).glob(f"{INNER}*.json"):
        if document.stem.endswith(".kill"):
            document.unlink(missing_ok=True)
            continue
        try:
            async with asyncio.timeout(_LEFT_OVER_SECONDS):
                await Execution(runs, record, ProcessSpec(("true",)), document.stem).end_left_over()
        except (TimeoutError, EngineUnavailable) as error:
            log.warning("command of an earlier service not killed sandbox=%s error=%s", record.id, error)
        else:
            log.info("command of an earlier service ended sandbox=%s command=%s", record.id, document.stem)


class Executions:
    """Open commands, at most ``MAX_OPEN`` for each sandbox."""

    def __init__(self) -> None:
        self._open: Counter[str] = Counter()

    @contextlib.asynccontextmanager
    async def open(self, runs: Runs, record: Record, spec: ProcessSpec) -> AsyncIterator[Execution]:
        if self._open[record.id] >= MAX_OPEN:
            raise InvalidState(f"{MAX_OPEN} commands run in the builder already: wait until one of them has ended.")
        with counted(self._open, record.id):
            async with execution(runs, record, spec) as begun:
                yield begun
