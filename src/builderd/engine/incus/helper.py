"""Helper instances: one on each member, without network, to which volumes are attached to work on their files.

Incus has no files API for volumes. The program in it is this package's own modules, sent when the instance is made.
Each service makes its own: ``Machine.remove_left_overs`` removes those of an earlier one.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import io
import json
import logging
import zipfile
from collections import OrderedDict
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path

import builderd
from builderd.core import errors
from builderd.core.errors import EngineUnavailable, InvalidState, NotFound, ValidationFailed
from builderd.core.resources import GB
from builderd.engine.incus.client import NO_SPACE, IncusClient, IncusError, IncusNotFound, Json, pool_full
from builderd.engine.incus.helper_program import VOLUMES
from builderd.engine.incus.instance import Volume, document, volume_device
from builderd.engine.incus.instances import Instances
from builderd.engine.incus.process import ExecSession, run_to_end

log = logging.getLogger(__name__)

#: Modules that the program needs: folders whole, files by name.
_MODULES = (
    "__init__.py",
    "core/*.py",
    "linux/*.py",
    *(f"{noun}/{name}.py" for noun in ("code", "dependencies", "files") for name in ("__init__", "model")),
    "engine/__init__.py",
    "engine/incus/__init__.py",
    "engine/incus/helper_program.py",
    "engine/oci/__init__.py",
    "engine/oci/storage/__init__.py",
    *(f"engine/oci/storage/{name}.py" for name in ("tree", "app_builds", "subvolumes")),
)
_FOLDER = "/opt/builderd/program"
_PROGRAM = "builderd.engine.incus.helper_program"
#: Capabilities of the program: over files that an app made unreadable, and their owners.
_KEPT = "-all,+dac_override,+dac_read_search,+chown,+fowner,+fsetid"
_UNPACK = (
    f"mkdir -p {_FOLDER} && cat >/tmp/program.zip && python3 -m zipfile -e /tmp/program.zip {_FOLDER} "
    f"&& rm /tmp/program.zip && python3 -m compileall -q {_FOLDER}"
)
#: Attempts to start a task.
_TRIES = 3
#: Volumes that stay attached after use, until they are deleted or others push them out.
_MOST_ATTACHED = 48
PREFIX = "helper-"


@cache
def packed_program() -> bytes:
    """Return the program's modules as a zip archive."""
    root = Path(builderd.__file__).parent
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for pattern in _MODULES:
            for path in sorted(root.glob(pattern)):
                entry = zipfile.ZipInfo(f"builderd/{path.relative_to(root)}")
                archive.writestr(entry, path.read_bytes(), zipfile.ZIP_DEFLATED)
    return packed.getvalue()


class HelperEndedError(Exception):
    """The helper instance does not run any more."""


class Helper:
    """The helper instance of one member; "" is the only one of a server without a cluster."""

    def __init__(self, client: IncusClient, instances: Instances, member: str) -> None:
        self._client = client
        self._instances = instances
        self._member = member
        self.name = f"{PREFIX}{member.replace('.', '-') or 'one'}"
        self._ready = False
        self._changing = asyncio.Lock()
        #: Attached volumes, the last used at the end, and how many tasks use each.
        self._attached: OrderedDict[str, int] = OrderedDict()

    async def open(self) -> None:
        """Make the instance. Idempotent."""
        async with self._changing:
            if self._ready:
                return
            # One that ended: a volume that it had attached, and that is gone, would prevent another start.
            await self._instances.delete(self.name)
            limits = self._instances.template(cpu=2, memory_bytes=GB, processes=512)
            body = document(replace(limits, name=self.name), self._client.project)
            # Volumes are attached while it runs, by a mount that Incus shares with it.
            raw: str = body["config"]["raw.lxc"]
            body["config"]["raw.lxc"] = raw.replace("lxc.mount.auto =\n", "")
            await self._client.call("POST", "/instances", body, target=self._member)
            self._attached = OrderedDict()
            code, output = await run_to_end(self._client, self.name, ("/bin/sh", "-ec", _UNPACK), packed_program())
            if code:
                raise EngineUnavailable(f"The helper instance could not be set up: {output.decode(errors='replace')}")
            self._ready = True

    @asynccontextmanager
    async def _using(self, volumes: Sequence[str]) -> AsyncIterator[None]:
        """Keep these volumes attached while the context lasts."""
        async with self._changing:
            missing = [volume for volume in volumes if volume not in self._attached]
            if missing:
                await self._attach(missing)
            attached = self._attached
            for volume in volumes:
                attached[volume] = attached.get(volume, 0) + 1
                attached.move_to_end(volume)
        try:
            yield
        finally:
            for volume in volumes:
                # Deleted meanwhile, or of an instance that has ended.
                if volume in attached:
                    attached[volume] -= 1

    async def _attach(self, volumes: Sequence[str]) -> None:
        idle = [volume for volume, users in self._attached.items() if not users]
        if surplus := idle[: max(len(self._attached) + len(volumes) - _MOST_ATTACHED, 0)]:
            await self._detach(surplus)
        pool = self._instances.pool
        devices = {device_of(name): volume_device(pool, Volume(name, str(VOLUMES / name))) for name in volumes}
        try:
            await self._instances.change(self.name, "PATCH", {"devices": devices})
        except IncusError as error:
            if not isinstance(error, IncusNotFound) and "not found" not in error.message.lower():
                raise
            if await self._instances.find(self.name) is None:
                raise HelperEndedError from None
            raise NotFound(f"There is no volume {' or '.join(volumes)}.") from None

    def is_using(self, volume: str) -> bool:
        """Return True while a task works on the volume."""
        return self._attached.get(volume, 0) > 0

    async def detach(self, volume: str) -> None:
        """Detach a volume that is to be deleted, also one that an earlier service attached. Idempotent."""
        async with self._changing:
            await self._detach([volume])

    async def _detach(self, volumes: Sequence[str]) -> None:
        gone = {device_of(volume) for volume in volumes}
        found = await self._instances.find(self.name)
        if found and gone & (found["devices"] or {}).keys():
            body = {name: found[name] for name in ("architecture", "config", "profiles", "ephemeral", "description")}
            body["devices"] = {name: device for name, device in found["devices"].items() if name not in gone}
            await self._instances.change(self.name, "PUT", body)
        for volume in volumes:
            self._attached.pop(volume, None)

    @asynccontextmanager
    async def task(self, name: str, request: Json, volumes: Sequence[str]) -> AsyncIterator[Task]:
        """Run a task of the program while the context lasts, on volumes that are attached for it."""
        confined = ("setpriv", f"--bounding-set={_KEPT}", f"--inh-caps={_KEPT}", "--no-new-privs")
        argv = ("env", f"PYTHONPATH={_FOLDER}", *confined, "python3", "-sm", _PROGRAM)
        for _ in range(_TRIES):
            await self.open()
            attached = self._attached
            async with AsyncExitStack() as using:
                try:
                    await using.enter_async_context(self._using(volumes))
                    session = await ExecSession.open(self._client, self.name, argv)
                except (HelperEndedError, InvalidState):
                    log.warning("helper instance ended, making it again helper=%s", self.name)
                    # Another task may have made it again already.
                    if self._attached is attached:
                        self._ready = False
                    continue
                using.push_async_callback(session.close)
                await session.write(json.dumps({**request, "task": name}).encode() + b"\n")
                yield Task(session, self._member)
                return
        raise EngineUnavailable(f"The helper instance {self.name} ends as soon as it is started.", retry_after=10)

    async def run(self, name: str, request: Json, volumes: Sequence[str]) -> Json:
        """Run a task without content, and return its answer."""
        async with self.task(name, request, volumes) as task:
            await task.session.close_input()
            return await task.answer()


def device_of(volume: str) -> str:
    return f"v-{hashlib.sha256(volume.encode()).hexdigest()[:24]}"


class Task:
    """A running task: its answers, and content in both directions."""

    def __init__(self, session: ExecSession, member: str) -> None:
        self.session = session
        self._member = member
        self._buffer = bytearray()

    async def send(self, data: bytes) -> None:
        """Send a piece of content, not empty."""
        await self.session.write(f"{len(data):08x}".encode() + data)

    async def send_end(self) -> None:
        """Say that the content is whole."""
        await self.session.write(b"00000000")

    async def answer(self) -> Json:
        """Return the next answer. Raises the task's error."""
        while b"\n" not in self._buffer:
            await self._fill()
        line, _, rest = self._buffer.partition(b"\n")
        self._buffer = bytearray(rest)
        answer: Json = json.loads(line)
        if "error" in answer:
            raise _error_of(answer, self._member)
        return answer

    async def frames(self) -> AsyncIterator[bytes]:
        """Yield content up to its end. Raises ``EngineUnavailable`` when it breaks off."""
        while length := int(await self._take(8), 16):
            yield await self._take(length)

    async def _take(self, count: int) -> bytes:
        while len(self._buffer) < count:
            await self._fill()
        taken = bytes(self._buffer[:count])
        del self._buffer[:count]
        return taken

    async def _fill(self) -> None:
        piece = await self.session.read()
        if not piece:
            told = (await self.session.read_errors()).decode(errors="replace")[-500:]
            raise EngineUnavailable(f"The helper instance broke off its work. {told}".strip(), retry_after=5)
        self._buffer += piece


def _error_of(answer: Json, member: str) -> Exception:
    match answer["error"]:
        case "ValidationFailed":
            return ValidationFailed(answer["errors"])
        case "OSError" if answer["errno"] == errno.ENOSPC:
            # A volume that has reached its own limit tells EDQUOT.
            return pool_full(NO_SPACE, member)
        case "OSError":
            return OSError(answer["errno"], answer["message"])
        case "Exception":
            return EngineUnavailable(f"The helper instance failed: {answer['message']}")
    kind: type[errors.BuilderdError] = getattr(errors, answer["error"])
    return kind(answer["message"])
