"""The service's side of the launcher: starts it, asks it, and starts another one should it die."""

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
    ``terminal`` makes its descriptor 0 the terminal that controls it; ``name`` is for ``kill``.
    ``oom_score`` is its ``oom_score_adj``, which what it starts inherits: the higher, the earlier it is killed.
    """

    argv: Sequence[str]
    env: Mapping[str, str] = field(default_factory=dict)
    cwd: str = "/"
    mounts: Sequence[Mapping[str, Any]] = ()
    cgroups: Sequence[str] = ()
    uid: int = -1
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

    async def attach(self, pid: int, network: Mapping[str, Any]) -> None:
        """Connect the network namespace of a process; ``network`` as ``Network.link`` makes it."""
        await self._ask({"op": "attach", "pid": pid, "network": network})

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
