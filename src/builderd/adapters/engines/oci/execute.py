"""Commands beside a running app.

Each begins at a gate that waits until the command's process is in a group of its own, so that every process it ever
starts, daemons among them, can be found and killed when its time is over.
"""

from __future__ import annotations

import asyncio
import codecs
import fcntl
import json
import os
import secrets
from pathlib import Path
from typing import Any

from builderd.adapters.engines.oci import command
from builderd.adapters.engines.oci.allocations import write_json
from builderd.adapters.engines.oci.bundle import make_process
from builderd.adapters.engines.oci.launching import Ended
from builderd.adapters.engines.oci.processes import open_files
from builderd.adapters.engines.oci.records import Record
from builderd.adapters.engines.oci.runs import Runs, around
from builderd.domain.errors import EngineUnavailable, InvalidState
from builderd.domain.sandboxes import ExecResult

TIMEOUT_EXIT_CODE = 124
#: What the gate says first; what comes before it is the runtime's complaint.
_READY = b"\x06"
#: Says that it is there, waits for the word, and becomes the command.
_GATE = r"exec 2>&1; printf '\006'; read -r _ && exec /bin/sh -c " + '"$0" </dev/null'
_PIPE_BYTES = 1 << 20
_DRAIN_SECONDS = 0.005
_LAST_READS = 16
_START_SECONDS = 30.0
_ENV = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
_MARK = "BUILDERD_EXEC"
#: Twice, for what a process started while the first round went by it.
_KILL_MARKED = r"""
for round in 1 2; do
  for process in /proc/[0-9]*; do
    if tr '\0' '\n' <"$process/environ" 2>/dev/null | grep -qxF "$0"; then kill -KILL "${process#/proc/}"; fi
  done
done"""


class Output:
    """What a command printed, up to a limit in bytes, read as it comes.

    Past the limit it is only taken away, and no faster than the service can bear, so that the command goes on.
    """

    def __init__(self, limit: int) -> None:
        #: Whether the command's gate has spoken; ``settled`` is set then, or when it never will.
        self.begun = False
        self.settled = asyncio.Event()
        self.truncated = False
        self.complaint = bytearray()
        self._limit = limit
        self._kept = bytearray()
        self._loop = asyncio.get_running_loop()
        self._read, self.write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        fcntl.fcntl(self._read, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        os.set_blocking(self.write, True)
        self._timer: asyncio.TimerHandle | None = None
        self._resume()

    def close(self) -> None:
        """Take what is there; what background processes print later is nobody's."""
        if self._timer:
            self._timer.cancel()
        for _ in range(_LAST_READS):
            if not self._take():
                break
        self._loop.remove_reader(self._read)
        os.close(self._read)

    @property
    def text(self) -> str:
        """A character that the limit cut in two is left out."""
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        return decoder.decode(bytes(self._kept), final=not self.truncated)

    def _resume(self) -> None:
        self._timer = None
        self._loop.add_reader(self._read, self._readable)

    def _readable(self) -> None:
        if not self._take():
            self._loop.remove_reader(self._read)
        elif self.truncated:
            self._loop.remove_reader(self._read)
            self._timer = self._loop.call_later(_DRAIN_SECONDS, self._resume)

    def _take(self) -> bool:
        """Read what is there; False when nothing is, or nothing will be."""
        try:
            chunk = os.read(self._read, _PIPE_BYTES)
        except BlockingIOError:
            return False
        if self.begun:
            self._keep(chunk)
        else:
            complaint, ready, rest = chunk.partition(_READY)
            self.complaint += complaint
            if ready:
                self.begun = True
                self.settled.set()
                self._keep(rest)
        return bool(chunk)

    def _keep(self, chunk: bytes) -> None:
        room = self._limit - len(self._kept)
        self._kept += chunk[:room]
        self.truncated = self.truncated or len(chunk) > room


class Execution:
    """One command in one sandbox."""

    def __init__(self, runs: Runs, record: Record) -> None:
        self._runs = runs
        self._record = record
        self._runtime = runs.runtime(record)
        self._name = f"exec-{secrets.token_hex(4)}"
        self._folder = runs.places.bundle(record.id)
        self._pid_file = self._folder / f"{self._name}.pid"

    async def run(self, text: str, timeout_seconds: float, limit_bytes: int) -> ExecResult:
        """Raises ``InvalidState`` when the sandbox has ended before the command begins."""
        document = self._folder / f"{self._name}.json"
        output = Output(limit_bytes)
        try:
            write_json(document, self._process(text))
            status = await self._run(document, output, timeout_seconds)
        finally:
            output.close()
            document.unlink(missing_ok=True)
            self._pid_file.unlink(missing_ok=True)
            if not self._runtime.is_gvisor:
                self._runs.cgroups.discard_inner(self._record.id, self._name)
        if status is None:
            raise InvalidState(f"The command could not be started: {output.complaint.decode(errors='replace').strip()}")
        return ExecResult(status, output.text, output.truncated)

    def _process(self, text: str) -> dict[str, Any]:
        """The app's own environment and user, for another program."""
        app = json.loads((self._folder / "config.json").read_text())["process"]
        env = dict(entry.split("=", 1) for entry in app["env"])
        if self._runtime.is_gvisor:
            env[_MARK] = self._name
        return make_process(["/bin/sh", "-c", _GATE, text], env, app["cwd"], app["user"]["uid"], open_files())

    async def _run(self, document: Path, output: Output, timeout_seconds: float) -> int | None:
        """The exit code, or None when the command never began. Its time begins when it does."""
        gate, word = os.pipe2(os.O_CLOEXEC)
        argv = command.execute(self._runtime, self._record.id, document, self._pid_file)
        descriptors = {0: gate, 1: output.write, 2: output.write}
        running = self._runs.launcher.run(argv, env=_ENV, descriptors=descriptors, mounts=around(self._runtime))
        program = asyncio.ensure_future(running)
        try:
            if not (await self._arrives(output, program) and await self._enter_group()):
                return None
            async with asyncio.timeout(timeout_seconds):
                os.write(word, b"\n")
                ended = await asyncio.shield(program)
        except TimeoutError:
            return TIMEOUT_EXIT_CODE
        finally:
            # The gate does not open any more where it has not been opened.
            os.close(word)
            if not program.done():
                await asyncio.shield(self._kill(program))
        return ended.status if ended.status >= 0 else 128 - ended.status

    @staticmethod
    async def _arrives(output: Output, program: asyncio.Future[Ended]) -> bool:
        """Wait until the gate says that it is there; False when the runtime ended without it.

        Raises ``EngineUnavailable`` when neither happens.
        """
        program.add_done_callback(lambda _: output.settled.set())
        try:
            await asyncio.wait_for(output.settled.wait(), _START_SECONDS)
        except TimeoutError as error:
            raise EngineUnavailable("The command could not be started in time: the machine is overloaded.") from error
        return output.begun

    async def _enter_group(self) -> bool:
        """Put the gate into a group of its own; False when the sandbox has ended meanwhile."""
        if self._runtime.is_gvisor:
            return True
        while not (pid := self._pid()):  # noqa: ASYNC110
            await asyncio.sleep(0.0005)
        try:
            self._runs.cgroups.enter_inner(self._record.id, self._name, pid)
        except (FileNotFoundError, ProcessLookupError):
            return False
        return True

    def _pid(self) -> int | None:
        """As the runtime writes it down, at about the time the gate speaks."""
        try:
            return int(self._pid_file.read_text())
        except (FileNotFoundError, ValueError):
            return None

    async def _kill(self, program: asyncio.Future[Ended]) -> None:
        """Kill every process that the command ever started."""
        if self._runtime.is_gvisor:
            await self._kill_marked()
        else:
            await asyncio.to_thread(self._runs.cgroups.kill, f"{self._record.id}/{self._name}")
        await program

    async def _kill_marked(self) -> None:
        """Under gVisor the host sees no processes: they are found inside, by a variable of their environment."""
        document = self._folder / f"{self._name}.kill.json"
        argv = ["/bin/sh", "-c", _KILL_MARKED, f"{_MARK}={self._name}"]
        write_json(document, make_process(argv, _ENV, "/", self._process("")["user"]["uid"], open_files()))
        try:
            pid_file = document.with_suffix(".pid")
            killer = command.execute(self._runtime, self._record.id, document, pid_file)
            await self._runs.launcher.run(killer, env=_ENV, mounts=around(self._runtime))
        finally:
            document.unlink()
            pid_file.unlink(missing_ok=True)
