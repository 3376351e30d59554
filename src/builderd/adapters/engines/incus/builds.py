"""Runs of a build's steps and of tools: an instance for each, one program in it, its output line by line."""

from __future__ import annotations

import asyncio
import io
import secrets
import tarfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from builderd.adapters.engines.incus import carry
from builderd.adapters.engines.incus.client import IncusClient
from builderd.adapters.engines.incus.errors import unless_full
from builderd.adapters.engines.incus.exec_session import ExecSession, run_to_end
from builderd.adapters.engines.incus.guest import READY, root_argv, specified
from builderd.adapters.engines.incus.instance import Instance, document
from builderd.adapters.engines.incus.instances import Instances
from builderd.domain.errors import BuilderdError
from builderd.ports.engine import Progress

PREFIX = "build-"
#: Prints how many processes the kernel killed for memory.
_KILLED = (
    "/bin/sh",
    "-c",
    "cat /run/cgroup/memory.events /run/cgroup/memory/memory.oom_control 2>/dev/null |"
    " awk '$1 == \"oom_kill\" {print $2}'",
)
_PATH = {"PATH": "/usr/bin:/bin"}
_MAX_LINE = 1 << 16
#: For a look at what was killed, after a build.
_LOOK_SECONDS = 5.0
_KILL_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class BuildExit:
    """Exit of a build. ``exit_code`` is not 0 when it ran out of memory or time."""

    exit_code: int
    out_of_memory: bool = False
    timed_out: bool = False


@dataclass(frozen=True, slots=True)
class Program:
    """A program and what it finds: ``files`` maps paths in the instance to their content, ``kept`` are capabilities.

    ``carried`` are folders of this machine by their paths inside: sent before, and brought back after the program.
    ``made`` are folders that are empty before and dropped after it.
    """

    argv: Sequence[str]
    env: Mapping[str, str]
    cwd: str
    timeout_seconds: float
    user: int = 0
    kept: str = ""
    files: Mapping[str, bytes] = field(default_factory=dict)
    carried: Mapping[str, Path] = field(default_factory=dict)
    made: Sequence[str] = ()


class Runner:
    """Runner of programs in instances of their own. When ``run`` returns, raises or is cancelled, none is left.

    One that Incus does not delete then is deleted once it answers (``Machine.remove_left_overs``).
    """

    def __init__(self, client: IncusClient, instances: Instances) -> None:
        self._client = client
        self._instances = instances
        #: Names of instances that this service runs now.
        self.own: set[str] = set()

    async def run(
        self, instance: Instance, program: Program, member: str, output: Progress, *, network: bool
    ) -> BuildExit:
        name = f"{PREFIX}{secrets.token_hex(8)}"
        named = replace(instance, name=name, hostname=instance.hostname or "build")
        self.own.add(name)
        try:
            if network:
                await self._instances.create(named, member, egress=True)
            else:
                await self._client.call("POST", "/instances", document(named, self._client.project), target=member)
            await self._send(name, program.files)
            for path in program.made:
                await carry.make(self._client, name, path, program.user)
            for path, folder in program.carried.items():
                await carry.send(self._client, name, path, folder, program.user)
            ended = await self._follow(name, program, output)
            for path, folder in program.carried.items():
                await carry.bring_back(self._client, name, path, folder)
            return ended
        finally:
            await asyncio.shield(self._delete(name, member))

    async def _delete(self, name: str, member: str) -> None:
        try:
            await self._instances.delete(name)
        except BaseException:
            # It would run on, and keep its volumes from being deleted.
            self._instances.on_left(member)
            raise
        finally:
            self.own.discard(name)

    async def _send(self, name: str, files: Mapping[str, bytes]) -> None:
        if not files:
            return
        code, output = await run_to_end(self._client, name, ("tar", "-xf", "-", "-C", "/"), packed(files))
        if code:
            raise unless_full(output, "The build's files could not be sent")

    async def _follow(self, name: str, program: Program, output: Progress) -> BuildExit:
        session = await ExecSession.open(self._client, name, root_argv(user=program.user, kept=program.kept))
        try:
            await session.write(specified(program.argv, program.env, program.cwd))
            await session.close_input()
            try:
                async with asyncio.timeout(program.timeout_seconds):
                    await _pass_lines(session, output)
                    code = await session.wait()
            except TimeoutError:
                return BuildExit(137, timed_out=True)
            return BuildExit(code, out_of_memory=code != 0 and await self._was_killed(name))
        finally:
            await session.close()

    async def _was_killed(self, name: str) -> bool:
        with suppress(BuilderdError, TimeoutError):
            # The build may have put other programs in the place of these: they get its own confinement, and a time.
            async with asyncio.timeout(_LOOK_SECONDS):
                _, told = await run_to_end(self._client, name, root_argv(), specified(_KILLED, _PATH, "/"))
            # After the wrapper's report.
            return any(count != b"0" for count in told.partition(b"\n")[2].split())
        return False


async def _pass_lines(session: ExecSession, output: Progress) -> None:
    """Pass on each line after the wrapper's report."""
    buffer, started = b"", False
    while piece := await session.read():
        buffer += piece
        *lines, buffer = buffer.split(b"\n")
        for line in lines:
            if not started and READY in line:
                started = True
                continue
            output(line.decode(errors="replace").rstrip("\r"))
        if len(buffer) > _MAX_LINE:
            output(buffer.decode(errors="replace"))
            buffer = b""
    if buffer:
        output(buffer.decode(errors="replace"))


def packed(files: Mapping[str, bytes]) -> bytes:
    """Return a tar archive of files by their absolute paths, owned by root."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as tar:
        for path, data in files.items():
            entry = tarfile.TarInfo(path.lstrip("/"))
            entry.size, entry.mode = len(data), 0o644
            tar.addfile(entry, io.BytesIO(data))
    return content.getvalue()
