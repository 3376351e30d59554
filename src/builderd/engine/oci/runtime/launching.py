"""The service's side of the launcher, which it starts again should it die, and command lines of runtimes and shim."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from builderd.core.errors import EngineUnavailable
from builderd.engine.oci.runtime.launcher import MAX_PACKET
from builderd.engine.oci.runtime.records import Record

_COMMAND = (sys.executable, "-s", "-S", "-m", "builderd.engine.oci.runtime.launcher")
_SOURCE = str(Path(__file__).parents[4])
_BUFFER = 1 << 20


@dataclass(frozen=True, slots=True)
class Ended:
    """End of a program: exit status, negative for a signal; ``error`` says why it could not be executed."""

    status: int
    error: str = ""


@dataclass(frozen=True, slots=True)
class Program:
    """Program that the launcher runs.

    ``cgroups`` are the ``cgroup.procs`` files that it enters first; ``uid`` is what idmapped mounts map to.
    ``network`` is the link of a sandbox, as ``Network.link`` makes it, and the ``folder`` in the program's mount
    namespace in which it finds the sandbox's user and network namespace as files.
    ``terminal`` makes its descriptor 0 the terminal that controls it; ``name`` is for ``kill``.
    ``oom_score`` is its ``oom_score_adj``, which what it starts inherits: the higher, the earlier it is killed.
    """

    argv: Sequence[str]
    env: Mapping[str, str] = field(default_factory=dict)
    cwd: str = "/"
    mounts: Sequence[Mapping[str, Any]] = ()
    cgroups: Sequence[str] = ()
    uid: int = -1
    network: Mapping[str, Any] | None = None
    terminal: bool = False
    oom_score: int = 0
    name: str = ""


class Launcher:
    """One launcher process, for one event loop."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._last = 0
        self._closed = False

    async def run(self, program: Program, descriptors: Mapping[int, int] | None = None) -> Ended:
        """Run a program to its end.

        ``descriptors`` maps a number in the program to a descriptor here, which this call closes in any case.
        """
        given = descriptors or {}
        request = {"op": "run", **asdict(program), "fds": list(given)}
        answer = await self._ask(request, list(given.values()))
        return Ended(answer["status"], answer["error"])

    async def kill(self, name: str) -> None:
        """Kill the program that runs under this name, and what it started in its session. Idempotent."""
        await self._ask({"op": "kill", "name": name})

    def close(self) -> None:
        """End the launcher for good; nothing that it started ends with it."""
        self._closed = True
        self._end()

    def _end(self) -> None:
        control, process = self._control, self._process
        self._control = self._process = None
        if control:
            asyncio.get_running_loop().remove_reader(control.fileno())
            control.close()
        if process:
            process.wait(10)
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(
                    EngineUnavailable("The launcher was killed during the request: try again.", retry_after=1)
                )

    async def _ask(self, request: dict[str, Any], descriptors: Sequence[int] = ()) -> dict[str, Any]:
        self._last += 1
        number, future = self._last, asyncio.get_running_loop().create_future()
        self._waiting[number] = future
        try:
            try:
                packet = json.dumps({"id": number, **request}).encode()
                if len(packet) > MAX_PACKET:
                    raise ValueError(f"a launcher request of {len(packet)} bytes, at most {MAX_PACKET}")
                await _send(self._control or self._start(), packet, descriptors)
            finally:
                for descriptor in set(descriptors):
                    os.close(descriptor)
            answer: dict[str, Any] = await future
        finally:
            self._waiting.pop(number, None)
        if "status" not in answer and answer.get("error"):
            raise EngineUnavailable(f"The launcher failed: {answer['error']}.")
        return answer

    def _start(self) -> socket.socket:
        if self._closed:
            raise EngineUnavailable("The engine has been closed.")
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (ours, theirs):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER)
        ours.setblocking(False)
        with theirs:
            self._process = subprocess.Popen(
                [*_COMMAND, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                cwd="/",
                env={"PYTHONPATH": _SOURCE},
            )
        self._control = ours
        asyncio.get_running_loop().add_reader(ours.fileno(), self._receive, ours)
        return ours

    def _receive(self, control: socket.socket) -> None:
        packet = b""
        with contextlib.suppress(OSError):
            packet = control.recv(_BUFFER)
        if not packet:  # it died: fail its requests; the next one starts another launcher
            if self._control is control:
                self._end()
            return
        answer = json.loads(packet)
        future = self._waiting.get(answer["id"])
        if future and not future.done():  # the caller may have been cancelled meanwhile
            future.set_result(answer)


async def _send(control: socket.socket, packet: bytes, descriptors: Sequence[int]) -> None:
    while True:
        try:
            socket.send_fds(control, [packet], descriptors)
        except BlockingIOError:
            await asyncio.sleep(0.001)
        else:
            return


#: Environment of shims and runtimes.
SHIM_ENV = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "_OCI_SYNCPIPE": "3"}
#: Hidden from gVisor, which otherwise takes any network namespace for the host's own and refuses it.
HIDE_NETWORK_PARAMETERS = {"kind": "tmpfs", "target": "/proc/sys/net"}


class RuntimeCommands:
    """Runtimes of this machine by name, and their commands."""

    def __init__(self, runtimes: Mapping[str, Runtime], launcher: Launcher) -> None:
        self._runtimes = runtimes
        self._launcher = launcher

    def runtime(self, record: Record) -> Runtime:
        """Return its runtime. Raises ``EngineUnavailable`` when the program was removed from the host."""
        if runtime := self._runtimes.get(record.runtime):
            return runtime
        raise EngineUnavailable(f"{record.runtime}, under which this sandbox runs, is not installed any more.")

    async def ask(self, runtime: Runtime, argv: Sequence[str], stream: int = 2, name: str = "") -> tuple[int, str]:
        """Run a runtime's command; return its exit status and one of its streams, at most 64 KiB.

        One with a ``name`` is killed when the caller is cancelled.
        """
        read, write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            program = Program(argv, SHIM_ENV, mounts=runtime_mounts(runtime), name=name)
            try:
                ended = await self._launcher.run(program, {stream: write})
            except asyncio.CancelledError:
                if name:
                    await self._launcher.kill(name)
                raise
            with contextlib.suppress(BlockingIOError):
                return ended.status, os.read(read, 65536).decode(errors="replace")
            return ended.status, ended.error
        finally:
            os.close(read)


def runtime_mounts(runtime: Runtime) -> list[dict[str, Any]]:
    """Return the mounts that every command of this runtime needs."""
    return [HIDE_NETWORK_PARAMETERS] if runtime.is_gvisor else []


CONMON = "/usr/bin/conmon"


@dataclass(frozen=True, slots=True)
class Runtime:
    """An OCI runtime: ``name`` is crun, runc or runsc, ``root`` where it keeps its state."""

    name: str
    path: str
    root: Path

    @property
    def is_gvisor(self) -> bool:
        """True when gVisor answers system calls: its processes are not processes of the host."""
        return self.name == "runsc"

    @property
    def options(self) -> tuple[str, ...]:
        """Return the options before every command. gVisor's own overlay would lose what the app writes."""
        gvisor = ("--overlay2=none", "--network=sandbox", "--host-uds=none") if self.is_gvisor else ()
        return (f"--root={self.root}", *gvisor)

    def command(self, *words: str) -> list[str]:
        return [self.path, *self.options, *words]


def execute(runtime: Runtime, name: str, process: Path, pid_file: Path, console: Path | None = None) -> list[str]:
    """Run the process of an OCI ``process`` document beside the sandbox's own.

    ``console`` is the socket over which the runtime hands over the terminal that it makes.
    """
    terminal = () if console is None else ("--console-socket", str(console))
    return runtime.command("exec", *terminal, "--process", str(process), "--pid-file", str(pid_file), name)


def shim(runtime: Runtime, name: str, bundle: Path, record: Path, exits: Path) -> list[str]:
    """conmon, which has the runtime create the sandbox, keeps its log, and writes down how it ended.

    ``bundle`` has its run-time files, ``record`` gets its ``oom`` file, ``exits`` a file with the exit code. It needs
    ``--full-attach``, or it fails on the path of a socket that is unused here.
    """
    return [
        CONMON,
        *("--api-version", "1", "--full-attach", "--no-sync-log"),
        *("--cid", name, "--cuuid", name, "--name", name),
        *("--runtime", runtime.path),
        *(word for option in runtime.options for word in ("--runtime-arg", option)),
        *("--bundle", str(bundle), "--socket-dir-path", str(bundle)),
        *("--container-pidfile", str(bundle / "pid"), "--conmon-pidfile", str(bundle / "conmon.pid")),
        *("--exit-dir", str(exits), "--persist-dir", str(record)),
    ]
