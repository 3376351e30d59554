"""Runs of a build's steps and of tools: an instance for each, one program in it, its output line by line."""

from __future__ import annotations

import asyncio
import io
import os
import secrets
import tarfile
import tempfile
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from builderd.core.errors import BuilderdError, EngineUnavailable
from builderd.core.ids import DiskId
from builderd.core.resources import GB
from builderd.engine.incus.client import IncusClient, names_full_pool, unless_full
from builderd.engine.incus.cluster import Members
from builderd.engine.incus.disks import Disks, volume_of
from builderd.engine.incus.image import READY, root_argv, specified
from builderd.engine.incus.instance import TOOL_DISK, Instance, Volume, document
from builderd.engine.incus.instances import Instances
from builderd.engine.incus.process import ExecSession, run_to_end
from builderd.engine.oci.network.host_files import CA_ENVIRONMENT
from builderd.engine.oci.storage.base import APP_UID
from builderd.engine.port import Progress, Tool, ToolExit

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
#: Limit of a folder that is brought back.
MAX_BYTES = 1 << 30
ENVIRONMENT = {"PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8", **CA_ENVIRONMENT}


@dataclass(frozen=True, slots=True)
class Program:
    """A program and what it finds: ``files`` maps paths in the instance to their content, ``kept`` are capabilities.

    ``folders`` are folders of this machine by their paths inside: sent before, and brought back after the program; one
    without a folder here (None) is empty before, and dropped after it.
    """

    argv: Sequence[str]
    env: Mapping[str, str]
    cwd: str
    timeout_seconds: float
    user: int = 0
    kept: str = ""
    files: Mapping[str, bytes] = field(default_factory=dict)
    folders: Mapping[str, Path | None] = field(default_factory=dict)


class Runner:
    """Runner of programs in instances of their own. When ``run`` returns, raises or is cancelled, none is left.

    One that Incus does not delete then is deleted at the next start of the service (``Machine.remove_left_overs``).
    """

    def __init__(self, client: IncusClient, instances: Instances) -> None:
        self._client = client
        self._instances = instances

    async def run(
        self, instance: Instance, program: Program, member: str, output: Progress, *, network: bool
    ) -> ToolExit:
        name = f"{PREFIX}{secrets.token_hex(8)}"
        named = replace(instance, name=name, hostname=instance.hostname or "build")
        try:
            if network:
                await self._instances.create(named, member, egress=True)
            else:
                await self._client.call("POST", "/instances", document(named, self._client.project), target=member)
            if program.files or program.folders:
                content = await asyncio.to_thread(packed, program)
                code, told = await run_to_end(self._client, name, ("tar", "-xpf", "-", "-C", "/"), content)
                if code:
                    raise unless_full(told, "The program's files could not be sent")
            ended = await self._follow(name, program, output)
            for path, folder in program.folders.items():
                if folder:
                    await self._bring_back(name, path, folder)
            return ended
        finally:
            await asyncio.shield(self._instances.delete(name))

    async def _bring_back(self, name: str, path: str, folder: Path) -> None:
        """Write what is in the instance's folder into this one."""
        session = await ExecSession.open(self._client, name, ("tar", "-cf", "-", "-C", path, "."))
        try:
            await session.close_input()
            with tempfile.TemporaryFile() as archive:
                while piece := await session.read():
                    if archive.tell() + len(piece) > MAX_BYTES:
                        raise EngineUnavailable(f"The tool left more than {MAX_BYTES} bytes in {path}.")
                    await asyncio.to_thread(archive.write, piece)
                if await session.wait():
                    raise EngineUnavailable(f"The tool's files in {path} could not be brought back.")
                archive.seek(0)
                await asyncio.to_thread(unpack, archive, folder)
        finally:
            await session.close()

    async def _follow(self, name: str, program: Program, output: Progress) -> ToolExit:
        session = await ExecSession.open(self._client, name, root_argv(user=program.user, kept=program.kept))
        try:
            await session.write(specified(program.argv, program.env, program.cwd))
            await session.close_input()
            try:
                async with asyncio.timeout(program.timeout_seconds):
                    await _pass_lines(session, output)
                    code = await session.wait()
            except TimeoutError:
                return ToolExit(137, timed_out=True)
            return ToolExit(code, out_of_memory=code != 0 and await self._was_killed(name))
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


def packed(program: Program) -> bytes:
    """Return a tar archive of a program's files, which are root's, and folders, whose files are its user's."""
    content = io.BytesIO()

    def owned(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
        entry.uid = entry.gid = program.user
        return entry if entry.isreg() or entry.isdir() else None

    with tarfile.open(fileobj=content, mode="w") as tar:
        for path, data in program.files.items():
            entry = tarfile.TarInfo(path.lstrip("/"))
            entry.size, entry.mode = len(data), 0o644
            tar.addfile(entry, io.BytesIO(data))
        for path, folder in program.folders.items():
            if folder:
                tar.add(folder, path.lstrip("/"), filter=owned)
                continue
            entry = tarfile.TarInfo(path.lstrip("/"))
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(owned(entry) or entry)
    return content.getvalue()


def unpack(archive: io.IOBase, folder: Path) -> None:
    """Write the regular files of an archive below the folder; they become its owner's. Links are left out."""
    owner = folder.stat()
    with tarfile.open(fileobj=archive, mode="r|") as tar:
        for entry in tar:
            if not entry.isreg() and not entry.isdir():
                continue
            # Takes leading slashes off, and refuses paths that lead out of the folder.
            inside = tarfile.data_filter(entry, str(folder))
            tar.extract(inside, folder, filter="data")
            os.chown(folder / inside.name, owner.st_uid, owner.st_gid, follow_symlinks=False)


class Tools:
    """Implements ``ports.engine.Tools``. Elsewhere than on the service's own member, tools get copies of its folders.

    ``refuse_used`` raises ``InvalidState`` while a sandbox runs on a disk.
    """

    def __init__(
        self,
        runner: Runner,
        instances: Instances,
        disks: Disks,
        members: Members,
        files: dict[str, bytes],
        refuse_used: Callable[[DiskId], Awaitable[None]],
    ) -> None:
        self._refuse_used = refuse_used
        self._runner = runner
        self._instances = instances
        self._disks = disks
        self._members = members
        self._files = files

    async def run_tool(self, tool: Tool, output: Progress) -> ToolExit:
        if tool.disk is not None and tool.writable:
            await self._refuse_used(tool.disk)
        own = self._members.own
        member = await self._disks.member(tool.disk) if tool.disk else self._members.taking_work()
        is_here = member == own
        if "repository" in tool.folders and not is_here:
            which = f"disk {tool.disk} lies" if tool.disk else "tool runs"
            raise EngineUnavailable(
                f"The {which} on the member {member}, which does not see the folders of this machine ({own}): use a "
                "repository that every member reaches, such as s3: or rest:."
            )
        for folder in tool.folders.values():
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # its parent keeps other users out
            if folder.lstat().st_uid != APP_UID:
                os.chown(folder, APP_UID, APP_UID)
        volumes = (Volume(volume_of(tool.disk), TOOL_DISK, read_only=not tool.writable),) if tool.disk else ()
        instance = replace(
            self._instances.template(cpu=2, memory_bytes=2 * GB, processes=256, own_bytes=2 * GB),
            volumes=volumes,
            binds=((f"{TOOL_DISK}/app", "/disk"),) if tool.disk else (),
            hidden=("/mnt",),
            hostname=tool.hostname,
            folders={f"/{name}": str(folder) for name, folder in tool.folders.items()} if is_here else {},
        )
        # A cache makes a tool faster and may be missing: it goes to no other member.
        sent = {f"/{name}": None if name == "cache" else folder for name, folder in tool.folders.items()}
        program = Program(
            tool.argv,
            {**ENVIRONMENT, "HOME": "/tmp", **tool.env},  # noqa: S108
            "/tmp",  # noqa: S108
            tool.timeout_seconds,
            user=APP_UID,
            kept="+dac_read_search" if tool.reads_all else "",
            files=self._files,
            folders={} if is_here else sent,
        )
        is_full = False

        def read(line: str) -> None:
            nonlocal is_full
            # A disk that has reached its own limit has other words.
            is_full |= names_full_pool(line)
            output(line)

        ended = await self._runner.run(instance, program, member, read, network=tool.network)
        return replace(ended, store_full=is_full and bool(ended.exit_code) and tool.disk is not None)
