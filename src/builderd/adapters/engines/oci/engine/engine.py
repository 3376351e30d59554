"""The engine for one machine: OCI runtimes under conmon, on a btrfs store. Implements ``ports.engine.Engine``."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager, nullcontext
from datetime import datetime
from functools import partial
from weakref import WeakValueDictionary

from builderd.adapters.engines.oci.engine.capacity import capacity
from builderd.adapters.engines.oci.engine.machine import Machine
from builderd.adapters.engines.oci.engine.opened_machine import OpenedMachine
from builderd.adapters.engines.oci.engine.starting import Starting
from builderd.adapters.engines.oci.runtime.command import Runtime
from builderd.adapters.engines.oci.runtime.executions import Executions
from builderd.adapters.engines.oci.runtime.memory_kills import oom_cause
from builderd.adapters.engines.oci.runtime.records import Record, is_name
from builderd.adapters.engines.oci.runtime.reports import make_report, missing_report
from builderd.adapters.engines.oci.runtime.thread_states import any_works
from builderd.adapters.engines.oci.storage.backing import free_bytes, total_bytes
from builderd.adapters.engines.oci.storage.base import UNUSED_SECONDS, collect_bases
from builderd.adapters.engines.oci.storage.too_large import full_store_named
from builderd.domain.bundles import Bundle
from builderd.domain.errors import EngineUnavailable, InvalidState, NotFound
from builderd.domain.files import Condition, FileEntry, FilePage
from builderd.domain.ids import BuilderId, DiskId, SandboxId
from builderd.domain.layers import BuildOutcome, BuildStep, LayerPlan, StoredLayers
from builderd.domain.members import MemberReport
from builderd.domain.processes import ProcessSpec
from builderd.domain.resources import Capacity
from builderd.domain.sandboxes import (
    Listening,
    LogMatch,
    LogPage,
    LogPiece,
    SandboxEffort,
    SandboxReport,
    SandboxSpec,
    SandboxState,
    SandboxUsage,
)
from builderd.domain.versions import Isolation
from builderd.linux.processes import boot_id
from builderd.linux.threads import run_to_completion
from builderd.ports.disk_files import OpenFile
from builderd.ports.engine import Collected, DiskReport, EngineOptions, Progress, Readiness, Tool, ToolExit
from builderd.ports.engine.usages import read_each
from builderd.ports.processes import Process

#: Space is tight when less than this part of the store is free.
TIGHT = 0.2
#: Age at which the scratch folder of no running sandbox is removed; longer than making one and starting on it takes.
SCRATCH_SECONDS = 3_600.0
_MISSING = {
    Isolation.STANDARD: "Neither crun nor runc is installed on this machine: apt-get install crun.",
    Isolation.STRONG: "Strong isolation needs gVisor, which is not installed on this machine: apt-get install runsc.",
}


class OciEngine:
    def __init__(self, settings: EngineOptions) -> None:
        self._opened = OpenedMachine(settings)
        #: One lock a disk, kept while it is held.
        self._start_locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._executions = Executions()

    # What the machine has

    async def prepare(self, progress: Progress) -> None:
        await self._opened.prepare(progress)

    def readiness(self) -> Readiness:
        return self._opened.readiness()

    def supports(self, isolation: Isolation) -> str | None:
        return None if isolation.value in self._here.runtimes else _MISSING[isolation]

    def prewarm(self) -> None:
        if machine := self._opened.machine:
            machine.cgroups.moves.prewarm()

    def capacity(self) -> Capacity:
        return capacity(self._here.store.reservations.capacity())

    @property
    def base_id(self) -> str:
        return self._here.base.id

    @property
    def gateway(self) -> str:
        return self._here.addresses.gateway

    @property
    def further_address(self) -> str:
        return ""

    @property
    def _here(self) -> Machine:
        return self._opened.here

    @property
    def _starter(self) -> Starting:
        return self._opened.starter

    # Layers

    async def has_layer(self, key: str) -> bool:
        return self._here.layers.has(key)

    async def build_layer(self, plan: LayerPlan, progress: Progress) -> BuildOutcome:
        return await self._here.layers.build(plan, progress)

    async def stored_layers(self, keys: Collection[str] | None = None) -> StoredLayers:
        return await run_to_completion(self._here.layers.stored, keys)

    async def collect_layers(self, keys: Collection[str], unused_seconds: float) -> Sequence[str]:
        return await run_to_completion(self._here.layers.collect_some, keys, unused_seconds)

    async def compile_layer(self, key: str, step: BuildStep) -> BuildOutcome:
        return await self._here.layers.compile(key, step)

    # Housekeeping

    async def collect(self, keep: Collection[str], unused_seconds: float) -> Collected:
        await self._here.runs.sweep()
        return await run_to_completion(self._collect, frozenset(keep), unused_seconds)

    def _collect(self, keep: Collection[str], unused_seconds: float) -> Collected:
        here = self._here
        layers = here.layers.collect(keep, unused_seconds)
        bases = collect_bases(here.base, max(unused_seconds, UNUSED_SECONDS))
        used = {record.disk for record in here.runs.all() if here.runs.is_running(record)}
        return Collected(layers, bases, here.disks.collect_scratch(used, min(unused_seconds, SCRATCH_SECONDS)))

    def is_tight(self) -> bool:
        store = self._here.store
        return store.is_short() or free_bytes(store.root) < total_bytes(store.root) * TIGHT

    # Disks

    def hold_disk(self, disk: DiskId, size_bytes: int) -> None:
        self._here.disks.hold(disk, size_bytes)

    async def create_disk(self, disk: DiskId, size_bytes: int) -> None:
        with full_store_named(self._here.store):
            await run_to_completion(self._here.disks.create, disk, size_bytes)

    async def disk(self, disk: DiskId) -> DiskReport | None:
        return self._here.disks.report(disk)

    async def put_bundle(
        self, disk: DiskId, bundle: Bundle, replaced: Bundle | None = None, build_key: str = ""
    ) -> None:
        self._refuse_while_used(disk)
        build = self._here.layers.finished_build(build_key) if build_key else None
        await run_to_completion(self._here.disks.put_bundle, disk, bundle, replaced, build)

    async def mark_bundle(self, disk: DiskId, bundle_hash: str) -> None:
        with full_store_named(self._here.store):
            await run_to_completion(self._here.disks.mark_bundle, disk, bundle_hash)

    async def clone_disk(self, source: DiskId, target: DiskId, size_bytes: int, *, for_backup: bool = False) -> None:
        here, user = self._here, self._user(source)
        clone = partial(here.disks.clone, source, target, size_bytes, for_backup=for_backup)
        with full_store_named(here.store):
            if user is None:
                await run_to_completion(clone)
            else:  # written out before the freeze, so that the freeze is shorter
                await run_to_completion(here.disks.write_out, source)
                await here.runs.freezing.while_frozen(user, clone)

    async def delete_disk(self, disk: DiskId) -> None:
        self._refuse_while_used(disk)
        await run_to_completion(self._here.disks.delete, disk)

    def _refuse_while_used(self, disk: DiskId) -> None:
        if self._user(disk):
            raise InvalidState(f"A sandbox runs on the disk {disk}: stop it first.")

    def _user(self, disk: DiskId) -> Record | None:
        """Return the running sandbox of this disk, or None."""
        runs = self._here.runs
        return next((one for one in runs.all() if one.disk == disk and runs.is_running(one)), None)

    async def run_tool(self, tool: Tool, output: Progress) -> ToolExit:
        if tool.disk is not None and tool.writable:
            self._refuse_while_used(tool.disk)
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
        return await self._here.files.write(disk, path, content, condition, size, executable)

    async def delete_file(self, disk: DiskId, path: str, condition: Condition, *, recursive: bool = False) -> None:
        await self._here.files.delete(disk, path, condition, recursive)

    def archive(self, disk: DiskId) -> AsyncGenerator[bytes]:
        return self._here.files.archive(disk)

    # Sandboxes

    async def start(self, spec: SandboxSpec) -> SandboxReport:
        async with self._start_locks.setdefault(spec.disk, asyncio.Lock()):
            report = await self.report(spec.id)
            if report.alive or report.state is SandboxState.EXITED:
                return report
            self._refuse_while_used(spec.disk)
            with full_store_named(self._here.store):
                return self._report(await self._starter.start(spec, self._runtime(spec.isolation)))

    def _runtime(self, isolation: Isolation) -> Runtime:
        if lack := self.supports(isolation):
            raise EngineUnavailable(lack)
        return self._here.runtimes[isolation.value]

    async def report(self, sandbox: SandboxId) -> SandboxReport:
        record = self._find(sandbox)
        return self._report(await self._here.runs.record_after_exit(record)) if record else missing_report(sandbox)

    async def list_sandboxes(self) -> Sequence[SandboxReport]:
        return [self._report(record) for record in self._here.runs.all() if not record.is_build]

    def _find(self, sandbox: SandboxId) -> Record | None:
        record = self._here.runs.find(sandbox)
        return None if record is None or record.is_build else record

    def _report(self, record: Record) -> SandboxReport:
        runs = self._here.runs
        return make_report(
            record,
            running=runs.is_running(record),
            frozen=runs.freezing.is_frozen(record),
            exit_=runs.records.exit(record.id),
            oom=oom_cause(runs.records, runs.cgroups, record.id),
            boot=boot_id(),
        )

    def _running(self, sandbox: SandboxId) -> Record | None:
        record = self._find(sandbox)
        return record if record and self._here.runs.is_running(record) else None

    async def listening(self, sandbox: SandboxId) -> Listening:
        record = self._running(sandbox)
        return Listening(await self._here.listening_ports.of(record) if record else frozenset())

    def watch_port(self, sandbox: SandboxId) -> AbstractContextManager[Callable[[], bool]]:
        record = self._running(sandbox)
        return self._here.listening_ports.watch(record) if record else nullcontext(lambda: True)

    async def freeze(self, sandbox: SandboxId) -> SandboxReport:
        if record := self._running(sandbox):
            await self._here.runs.freezing.freeze(record)
        return await self.report(sandbox)

    async def thaw(self, sandbox: SandboxId) -> SandboxReport:
        # Visitors wait for this: one lookup only.
        if record := self._running(sandbox):
            return self._report(await self._here.runs.freezing.thaw(record))
        return await self.report(sandbox)

    async def stop(self, sandbox: SandboxId, grace_seconds: float) -> SandboxReport:
        if (record := self._find(sandbox)) is None:
            return missing_report(sandbox)
        report = self._report(record)
        match report.state:
            case SandboxState.PARTIAL:
                await self._here.runs.remove(record)
                return missing_report(sandbox)
            case SandboxState.RUNNING | SandboxState.FROZEN:
                return self._report(await self._here.runs.stop(record, grace_seconds))
        return report

    async def remove(self, sandbox: SandboxId) -> None:
        record = self._find(sandbox)
        if record is None:
            return
        if self._here.runs.is_running(record):
            raise InvalidState(f"The sandbox {sandbox} runs: stop it first.")
        await self._here.runs.remove(record)

    async def exits(self) -> AsyncIterator[SandboxId]:
        async for name in self._here.runs.exits.subscribe():
            if self._find(SandboxId(name)):
                yield SandboxId(name)

    @asynccontextmanager
    async def open_process(self, sandbox: SandboxId, spec: ProcessSpec) -> AsyncIterator[Process]:
        record = self._running(sandbox)
        if record is None:
            raise InvalidState("The sandbox does not run.")
        await self._here.runs.freezing.thaw(record)
        async with self._executions.open(self._here.runs, record, spec) as process:
            yield process

    async def usage(self, sandbox: SandboxId) -> SandboxUsage | None:
        record, here = self._running(sandbox), self._here
        if record is None or (used := here.cgroups.usage(record.id)) is None:
            return None
        bytes_in, bytes_out = here.network.traffic(record.slot)
        disk = await asyncio.to_thread(self._disk_usage, DiskId(record.disk))
        return SandboxUsage(used.cpu_seconds, used.memory_bytes, disk, bytes_in, bytes_out, used.processes)

    async def usages(
        self, sandboxes: Collection[SandboxId], max_age: float = 0
    ) -> Mapping[SandboxId, SandboxUsage | Exception]:
        return await read_each(self.usage, sandboxes)

    async def effort(self, sandbox: SandboxId) -> SandboxEffort | None:
        record, cgroups = self._running(sandbox), self._here.cgroups
        if record is None:
            return None
        try:
            is_working = any_works(cgroups.threads(record.id))
            return SandboxEffort(cgroups.cpu_seconds(record.id), is_working, cgroups.refaults(record.id))
        except FileNotFoundError:
            return None

    def _disk_usage(self, disk: DiskId) -> int:
        """Return the disk's used bytes, 0 when the disk was removed under the app. Blocks."""
        try:
            return self._here.disks.usage(disk)
        except (NotFound, FileNotFoundError):
            return 0

    async def read_log(
        self,
        sandbox: SandboxId,
        cursor: str = "",
        *,
        tail: int | None = None,
        since: datetime | None = None,
        limit: int | None = None,
    ) -> LogPage:
        if not is_name(sandbox):
            return LogPage([], cursor, more=False)
        ended = self._running(sandbox) is None
        return await run_to_completion(self._here.logs.read, sandbox, cursor, ended, tail, since, limit)

    async def search_log(self, sandbox: SandboxId, match: LogMatch, before: str = "", *, count: int) -> LogPiece:
        if not is_name(sandbox):
            return LogPiece([], "", before, more=False)
        ended = self._running(sandbox) is None
        return await run_to_completion(self._here.logs.search, sandbox, match, before, ended, count)

    async def delete_logs(self, builder: BuilderId) -> None:
        await run_to_completion(self._here.logs.delete, builder)

    # Members

    async def members(self) -> Sequence[MemberReport]:
        return []

    async def disk_members(self) -> Mapping[DiskId, str]:
        return {}

    async def move_disk(self, disk: DiskId) -> str:
        return ""

    def write_off(self, disk: DiskId) -> None:
        """Do nothing: there is this machine only."""

    # The end

    async def close(self) -> None:
        await self._opened.close()

    async def down(self) -> None:
        await self._opened.down()
