"""The engine on Incus. Implements ``ports.engine.Engine``.

What it cannot do: ``strong`` isolation (a VM), memory given back by a frozen app (docs/cluster.md).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    AsyncExitStack,
    asynccontextmanager,
    nullcontext,
    suppress,
)
from datetime import datetime
from weakref import WeakValueDictionary

from builderd.adapters.engines.incus.client import RETRY_SECONDS, IncusOptions, Json
from builderd.adapters.engines.incus.machine import Machine, open_machine
from builderd.adapters.engines.incus.network import gateway
from builderd.adapters.engines.incus.process import NotRunningError
from builderd.adapters.engines.incus.reports import name_of
from builderd.adapters.engines.incus.volumes import users_of
from builderd.domain.bundles import Bundle
from builderd.domain.errors import BuilderdError, EngineUnavailable, NoCapacity
from builderd.domain.files import Condition, FileEntry, FilePage
from builderd.domain.ids import BuilderId, DiskId, SandboxId
from builderd.domain.layers import BuildOutcome, BuildStep, LayerPlan, StoredLayers
from builderd.domain.members import MemberReport
from builderd.domain.processes import ProcessSpec
from builderd.domain.resources import GB, Capacity
from builderd.domain.sandboxes import (
    Listening,
    LogMatch,
    LogPage,
    LogPiece,
    SandboxReport,
    SandboxSpec,
    SandboxUsage,
)
from builderd.domain.versions import Isolation
from builderd.linux.cpu_time import is_busy
from builderd.ports.disk_files import OpenFile
from builderd.ports.engine import Collected, DiskReport, EngineOptions, Progress, Readiness, Tool, ToolExit
from builderd.ports.processes import Process

log = logging.getLogger(__name__)

_DOWN_GRACE_SECONDS = 5.0
#: By ``down``: with hundreds at once, members of Incus stop answering each other.
_STOPPED_AT_ONCE = 16
#: Space is tight when less than this part of the pool is free.
TIGHT = 0.2
_NO_VM = (
    "Strong isolation needs virtual machines, which the engine incus does not start yet: leave isolation out, or use "
    "the engine oci with gVisor."
)


class IncusEngine:
    def __init__(self, options: EngineOptions, incus: IncusOptions) -> None:
        self._options = options
        self._incus = incus
        self._machine: Machine | None = None
        self._readiness = Readiness(False, "waiting to be prepared")
        self._preparing = asyncio.Lock()
        #: One lock a disk, kept while it is held: nothing starts on a disk that is moved or deleted.
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._tight = False

    # All its parts are itself.

    @property
    def sandboxes(self) -> IncusEngine:
        return self

    disks = files = layers = logs = tools = sandboxes

    async def prepare(self, progress: Progress) -> None:
        async with self._preparing:
            if self._readiness.ready:
                return

            def on_progress(line: str) -> None:
                self._readiness = Readiness(False, line)
                progress(line)

            try:
                self._machine = await open_machine(self._options, self._incus, on_progress)
            except BuilderdError as error:
                self._readiness = Readiness(False, error.message)
                raise
            except OSError as error:
                self._readiness = Readiness(False, f"The engine could not be opened: {error}.")
                raise EngineUnavailable(self._readiness.message) from error
            self._readiness = Readiness(True, "ready")

    def readiness(self) -> Readiness:
        """Return whether sandboxes can be started: not while the cluster has no quorum, either."""
        if self._readiness.ready and self._machine and (reason := self._machine.members.unavailable_reason):
            return Readiness(False, reason, engine_unreachable=True)
        return self._readiness

    def supports(self, isolation: Isolation) -> str | None:
        return None if isolation is Isolation.STANDARD else _NO_VM

    def capacity(self) -> Capacity:
        return self._here.capacity

    @property
    def base_id(self) -> str:
        return self._here.image.base_id

    @property
    def gateway(self) -> str:
        return gateway(self._incus.subnet)

    @property
    def further_address(self) -> str:
        return self._here.service_address()

    @property
    def _here(self) -> Machine:
        if self._machine is None:
            raise EngineUnavailable(f"The engine is not ready: {self._readiness.message}.", retry_after=5)
        return self._machine

    # Layers

    async def has_layer(self, key: str) -> bool:
        return await self._here.layers.has(key)

    async def build_layer(self, plan: LayerPlan, progress: Progress) -> BuildOutcome:
        return await self._here.layers.build(plan, progress)

    async def stored_layers(self, keys: Collection[str] | None = None) -> StoredLayers:
        return await self._here.layers.stored(self._here.disk_bytes, keys)

    async def collect_layers(self, keys: Collection[str], unused_seconds: float) -> Sequence[str]:
        return await self._here.layers.collect((), unused_seconds, only=keys)

    async def compile_layer(self, key: str, step: BuildStep) -> BuildOutcome:
        return await self._here.layers.compile(key, step)

    async def collect(self, keep: Collection[str], unused_seconds: float) -> Collected:
        layers = await self._here.layers.collect(frozenset(keep), unused_seconds)
        self._tight = await self._here.cluster.free_share() < TIGHT
        await self._here.measure()
        return Collected(layers, [], 0)

    def is_busy(self) -> bool:
        return is_busy()

    def is_tight(self) -> bool:
        return self._tight

    # Disks

    def hold_disk(self, disk: DiskId, size_bytes: int) -> None:
        """Refuse a disk that no pool has room for; a volume of Incus takes its space as it is written."""
        here = self._here
        if size_bytes > here.pool_bytes:
            raise NoCapacity(
                f"The storage pool of Incus has {here.pool_bytes / GB:.1f} GB on a member, and a disk of "
                f"{size_bytes / GB:.1f} GB is asked for: ask for a smaller one, or enlarge the pool."
            )

    async def create_disk(self, disk: DiskId, size_bytes: int) -> None:
        await self._here.disks.create(disk, size_bytes)

    async def disk(self, disk: DiskId) -> DiskReport | None:
        return await self._here.disks.report(disk)

    async def put_bundle(
        self, disk: DiskId, bundle: Bundle, replaced: Bundle | None = None, build_key: str = ""
    ) -> None:
        here = self._here
        found = await here.disks.existing(disk)
        await here.sandboxes.refuse_users(disk, users_of(found))
        volume = ""
        if build_key:
            volume, _ = await here.layers.volume(build_key, str(found.get("location") or ""))
        await here.disks.put_bundle(found, bundle, replaced, build_key, volume)

    async def mark_bundle(self, disk: DiskId, bundle_hash: str) -> None:
        await self._here.disks.mark_bundle(disk, bundle_hash)

    async def clone_disk(self, source: DiskId, target: DiskId, size_bytes: int, *, for_backup: bool = False) -> None:
        here = self._here
        async with await here.sandboxes.frozen_meanwhile(source):
            await here.disks.clone(source, target, size_bytes)
        if for_backup:
            await here.disks.put_home_in(target)

    async def delete_disk(self, disk: DiskId) -> None:
        here = self._here
        async with self._locks.setdefault(disk, asyncio.Lock()):
            if await here.lost.delete_later(disk, here.members.away_names()):
                return
            if (found := await here.disks.find(disk)) is not None:
                await self._release(disk, found)
                await here.disks.delete(disk, found)

    async def _release(self, disk: DiskId, found: Json) -> None:
        """Take a disk from ended sandboxes. Raises ``InvalidState`` while one runs."""
        users = users_of(found)
        await self._here.sandboxes.refuse_users(disk, users)
        await self._here.sandboxes.release(users)

    async def run_tool(self, tool: Tool, output: Progress) -> ToolExit:
        if tool.disk is not None and tool.writable:
            await self._here.sandboxes.refuse_while_used(tool.disk)
        return await self._here.tools.run(tool, output)

    # Files

    async def list_files(self, disk: DiskId, path: str, skip: int, count: int) -> FilePage:
        return await self._here.files.list(disk, path, skip, count)

    def open_file(self, disk: DiskId, path: str) -> AbstractAsyncContextManager[OpenFile]:
        return self._here.files.open(disk, path)

    async def write_file(
        self,
        disk: DiskId,
        path: str,
        content: AsyncIterator[bytes],
        *,
        condition: Condition,
        size: int | None = None,
        executable: bool | None = None,
    ) -> tuple[FileEntry, bool]:
        here = self._here
        with here.moves.writing(disk):
            return await here.files.write(disk, path, content, condition, size, executable)

    async def delete_file(self, disk: DiskId, path: str, condition: Condition, *, recursive: bool = False) -> None:
        here = self._here
        with here.moves.writing(disk):
            await here.files.delete(disk, path, condition, recursive)

    def archive(self, disk: DiskId) -> AsyncGenerator[bytes]:
        return self._here.files.archive(disk)

    # Sandboxes

    async def start(self, spec: SandboxSpec) -> SandboxReport:
        if refusal := self.supports(spec.isolation):
            raise EngineUnavailable(refusal)
        async with self._locks.setdefault(spec.disk, asyncio.Lock()):
            return await self._here.sandboxes.start(spec)

    async def report(self, sandbox: SandboxId) -> SandboxReport:
        return await self._here.sandboxes.report(sandbox)

    async def list_sandboxes(self) -> Sequence[SandboxReport]:
        return await self._here.sandboxes.all()

    def watch_port(self, sandbox: SandboxId) -> AbstractContextManager[Callable[[], bool]]:
        return self._here.ports.watch(sandbox)

    async def listening(self, sandbox: SandboxId) -> Listening:
        return await self._here.ports.listening(sandbox)

    async def freeze(self, sandbox: SandboxId) -> SandboxReport:
        return await self._here.sandboxes.freeze(sandbox)

    async def thaw(self, sandbox: SandboxId) -> SandboxReport:
        return await self._here.sandboxes.thaw(sandbox)

    async def stop(self, sandbox: SandboxId, grace_seconds: float) -> SandboxReport:
        return await self._here.sandboxes.stop(sandbox, grace_seconds)

    async def remove(self, sandbox: SandboxId) -> None:
        await self._here.sandboxes.remove(sandbox)

    async def exits(self) -> AsyncIterator[SandboxId]:
        here = self._here
        queue = here.events.subscribe()
        try:
            while True:
                sandbox = await queue.get()
                with suppress(EngineUnavailable):
                    # Its end is written down, also when nobody asks for it.
                    await here.sandboxes.report(sandbox)
                yield sandbox
        finally:
            here.events.unsubscribe(queue)

    @asynccontextmanager
    async def open_process(self, sandbox: SandboxId, spec: ProcessSpec) -> AsyncIterator[Process]:
        here = self._here
        async with AsyncExitStack() as held:
            process = None
            if here.sandboxes.is_at_hand(sandbox):
                # Most run, and need no question before.
                with suppress(NotRunningError):
                    process = await held.enter_async_context(here.processes.open(name_of(sandbox), spec))
            if process is None:
                found = await here.sandboxes.running(sandbox)
                if found is None:
                    raise NotRunningError
                if found["status"] == "Frozen":
                    await here.sandboxes.thaw(sandbox)
                process = await held.enter_async_context(here.processes.open(found["name"], spec))
            yield process

    async def usage(self, sandbox: SandboxId) -> SandboxUsage | None:
        return await self._here.usage.read(sandbox)

    async def usages(
        self, sandboxes: Collection[SandboxId], max_age: float = 0
    ) -> Mapping[SandboxId, SandboxUsage | Exception]:
        return await self._here.usage.read_many(sandboxes, max_age)

    async def read_log(
        self,
        sandbox: SandboxId,
        cursor: str = "",
        *,
        tail: int | None = None,
        since: datetime | None = None,
        limit: int | None = None,
    ) -> LogPage:
        if not sandbox.isalnum():
            return LogPage([], cursor, more=False)
        return await self._here.logs.read(name_of(sandbox), cursor, tail, since, limit)

    async def search_log(self, sandbox: SandboxId, match: LogMatch, before: str = "", *, count: int) -> LogPiece:
        if not sandbox.isalnum():
            return LogPiece([], "", before, more=False)
        return await self._here.logs.search(name_of(sandbox), match, before, count)

    async def delete_logs(self, builder: BuilderId) -> None:
        await self._here.sandboxes.delete_logs(builder)

    # Members

    async def members(self) -> Sequence[MemberReport]:
        here = self._here
        return here.members.reports(self._incus, here.capacities) if here.cluster.clustered else []

    async def disk_members(self) -> Mapping[DiskId, str]:
        here = self._here
        return await here.disks.members() if here.cluster.clustered else {}

    async def move_disk(self, disk: DiskId) -> str:
        here = self._here
        async with self._locks.setdefault(disk, asyncio.Lock()):
            found = await here.disks.existing(disk)
            member = str(found.get("location") or "")
            if not here.moves.is_due(disk, member):
                return member
            await self._release(disk, found)
            return await here.moves.move(disk, found)

    def write_off(self, disk: DiskId) -> None:
        self._here.disks.written_off.add(disk)

    # The end

    async def close(self) -> None:
        machine, self._machine = self._machine, None
        self._readiness = Readiness(False, "closed")
        if machine:
            await machine.close()

    async def down(self) -> None:
        """Stop every sandbox and the helpers. Disks, logs and layers stay in Incus."""
        if self._machine is None:
            self._machine = await open_machine(self._options, self._incus, lambda line: None, prepare=False)
        machine = self._machine
        self._readiness = Readiness(False, "going down")
        turns = asyncio.Semaphore(_STOPPED_AT_ONCE)

        async def stop(sandbox: SandboxId) -> None:
            async with turns:
                await machine.sandboxes.stop(sandbox, _DOWN_GRACE_SECONDS)

        alive = [report.id for report in await machine.sandboxes.all() if report.alive]
        ended = await asyncio.gather(*map(stop, alive), return_exceptions=True)
        failed = [error for error in ended if isinstance(error, Exception)]
        with suppress(BuilderdError) if failed else nullcontext():
            await machine.remove_own_instances()
        if failed:
            raise EngineUnavailable(
                f"{len(failed)} of {len(alive)} sandboxes could not be stopped: run builderd down again. "
                f"The last failure: {failed[-1]!r}",
                retry_after=RETRY_SECONDS,
            )
        self._readiness = Readiness(False, "down")
