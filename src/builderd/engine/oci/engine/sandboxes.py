"""Sandboxes and disks of builders on this machine. Implements ``ports.engine.Sandboxes`` and ``Disks``."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from weakref import WeakValueDictionary

from builderd.code.model import Bundle
from builderd.core.errors import EngineUnavailable, InvalidState, NotFound
from builderd.core.ids import DiskId, SandboxId
from builderd.dependencies.model import NODE_MODULES
from builderd.engine.oci.engine.machine import Machine
from builderd.engine.oci.runtime.execute import Executions
from builderd.engine.oci.runtime.records import Record, make_report, missing_report, oom_cause
from builderd.engine.oci.runtime.run import Root, app_root, brings_packages, make_run
from builderd.engine.oci.storage.quotas import DiskSpace
from builderd.engine.oci.storage.store import full_store_named
from builderd.engine.port import DiskReport, Process, read_each
from builderd.executions.model import ProcessSpec
from builderd.linux.processes import boot_id
from builderd.linux.threads import run_to_completion
from builderd.sandboxes.model import Listening, SandboxReport, SandboxSpec, SandboxState, SandboxUsage
from builderd.versions.model import Isolation

_MISSING = {
    Isolation.STANDARD: "Neither crun nor runc is installed on this machine: apt-get install crun.",
    Isolation.STRONG: "Strong isolation needs gVisor, which is not installed on this machine: apt-get install runsc.",
}


class Sandboxes:
    """Sandboxes on an open machine."""

    #: There is no other member of a cluster.
    further_address = ""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._executions = Executions()
        #: One lock a disk, kept while it is held.
        self._start_locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    @property
    def gateway(self) -> str:
        return self._machine.addresses.gateway

    def supports(self, isolation: Isolation) -> str | None:
        return None if isolation.value in self._machine.runtimes else _MISSING[isolation]

    async def start(self, spec: SandboxSpec) -> SandboxReport:
        async with self._start_locks.setdefault(spec.disk, asyncio.Lock()):
            report = await self.report(spec.id)
            if report.alive or report.state is SandboxState.EXITED:
                return report
            self._machine.runs.refuse_while_used(spec.disk, spec.process)
            with full_store_named(self._machine.store):
                return self._report(await self._start(spec))

    async def _start(self, spec: SandboxSpec) -> Record:
        """Start it. Raises ``EngineUnavailable`` on failure and leaves nothing."""
        machine = self._machine
        if lack := self.supports(spec.isolation):
            raise EngineUnavailable(lack)
        if left := machine.runs.find(spec.id):
            await machine.runs.remove(left)
        root, space = await run_to_completion(self._make_root, spec)
        log_file = machine.logs.begin(spec.builder_id, spec.id)
        url = f"http://{self.gateway}:{machine.settings.inside_port}"
        runtime = machine.runtimes[spec.isolation.value]
        run = make_run(spec, runtime, root, space, log_file, machine.settings.log_limit, url)
        return await machine.runs.start(run)

    def _make_root(self, spec: SandboxSpec) -> tuple[Root, DiskSpace]:
        """Make the root's folders; return it with the space of the disk. Blocks while the store syncs or collects."""
        here = self._machine
        layer = None if spec.layer_key is None else here.layers.lower(spec.layer_key)
        scratch = here.disks.scratch(spec.disk, spec.tenant_id, spec.id if spec.process else None)
        has_packages = layer is not None and (layer / NODE_MODULES).is_dir() and not brings_packages(spec.entrypoint)
        place = f"{spec.root}/{NODE_MODULES}" if spec.root else NODE_MODULES
        mirrored = has_packages and here.disks.make_mount_point(spec.disk, place)
        app, home = here.disks.app(spec.disk), here.disks.home(spec.disk)
        packages = place if mirrored else None
        root = app_root(here.lowers(layer), scratch, app, home, packages=packages)
        return root, here.disks.space(spec.disk, scratch)

    async def report(self, sandbox: SandboxId) -> SandboxReport:
        record = self._find(sandbox)
        return self._report(await self._machine.runs.record_after_exit(record)) if record else missing_report(sandbox)

    async def list_sandboxes(self) -> Sequence[SandboxReport]:
        return [self._report(record) for record in self._machine.runs.all() if not record.is_build]

    def _find(self, sandbox: SandboxId) -> Record | None:
        record = self._machine.runs.find(sandbox)
        return None if record is None or record.is_build else record

    def _report(self, record: Record) -> SandboxReport:
        runs = self._machine.runs
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
        return record if record and self._machine.runs.is_running(record) else None

    async def listening(self, sandbox: SandboxId, port: int) -> Listening:
        record = self._find(sandbox)
        if record is None or record.started_at is None:
            return Listening(frozenset())
        return Listening(await self._machine.listening_ports.of(record, port))

    async def freeze(self, sandbox: SandboxId) -> SandboxReport:
        if record := self._running(sandbox):
            await self._machine.runs.freezing.freeze(record)
        return await self.report(sandbox)

    async def thaw(self, sandbox: SandboxId) -> SandboxReport:
        # Visitors wait for this: one lookup only.
        if record := self._running(sandbox):
            return self._report(await self._machine.runs.freezing.thaw(record))
        return await self.report(sandbox)

    async def stop(self, sandbox: SandboxId, grace_seconds: float) -> SandboxReport:
        if (record := self._find(sandbox)) is None:
            return missing_report(sandbox)
        report = self._report(record)
        match report.state:
            case SandboxState.PARTIAL:
                await self._machine.runs.remove(record)
                return missing_report(sandbox)
            case SandboxState.RUNNING | SandboxState.FROZEN:
                return self._report(await self._machine.runs.stop(record, grace_seconds))
        return report

    async def remove(self, sandbox: SandboxId) -> None:
        record = self._find(sandbox)
        if record is None:
            return
        if self._machine.runs.is_running(record):
            raise InvalidState(f"The sandbox {sandbox} runs: stop it first.")
        await self._machine.runs.remove(record)
        if record.label:
            await run_to_completion(self._machine.disks.drop_scratch, record.id)

    async def exits(self) -> AsyncIterator[SandboxId]:
        async for name in self._machine.runs.exits.subscribe():
            if self._find(SandboxId(name)):
                yield SandboxId(name)

    @asynccontextmanager
    async def open_process(self, sandbox: SandboxId, spec: ProcessSpec) -> AsyncIterator[Process]:
        record = self._running(sandbox)
        if record is None:
            raise InvalidState("The sandbox does not run.")
        await self._machine.runs.freezing.thaw(record)
        async with self._executions.open(self._machine.runs, record, spec) as process:
            yield process

    async def usage(self, sandbox: SandboxId) -> SandboxUsage | None:
        record, here = self._running(sandbox), self._machine
        if record is None or (used := here.cgroups.usage(record.id)) is None:
            return None
        bytes_in, bytes_out = here.network.traffic(record.slot)
        disk = await asyncio.to_thread(self._disk_usage, DiskId(record.disk))
        return SandboxUsage(used.cpu_seconds, used.memory_bytes, disk, bytes_in, bytes_out, used.processes)

    async def usages(self, sandboxes: Collection[SandboxId]) -> Mapping[SandboxId, SandboxUsage | Exception]:
        return await read_each(self.usage, sandboxes)

    def _disk_usage(self, disk: DiskId) -> int:
        """Return the disk's used bytes, 0 when the disk was removed under the app. Blocks."""
        try:
            return self._machine.disks.usage(disk)
        except (NotFound, FileNotFoundError):
            return 0


class Disks:
    """Implements ``ports.engine.Disks``."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._disks = machine.disks

    def reserve_disk(self, disk: DiskId, size_bytes: int) -> None:
        self._disks.reserve(disk, size_bytes)

    async def create_disk(self, disk: DiskId, size_bytes: int) -> None:
        with full_store_named(self._machine.store):
            await run_to_completion(self._disks.create, disk, size_bytes)

    async def disk(self, disk: DiskId) -> DiskReport | None:
        return self._disks.report(disk)

    async def put_bundle(
        self, disk: DiskId, bundle: Bundle, replaced: Bundle | None = None, build_key: str = ""
    ) -> None:
        self._machine.runs.refuse_while_used(disk)
        build = self._machine.layers.finished_build(build_key) if build_key else None
        await run_to_completion(self._disks.put_bundle, disk, bundle, replaced, build)

    async def mark_bundle(self, disk: DiskId, bundle_hash: str) -> None:
        with full_store_named(self._machine.store):
            await run_to_completion(self._disks.mark_bundle, disk, bundle_hash)

    async def clone_disk(self, source: DiskId, target: DiskId, size_bytes: int, *, for_backup: bool = False) -> None:
        users = self._machine.runs.users_of(source)
        clone = partial(self._disks.clone, source, target, size_bytes, for_backup=for_backup)
        with full_store_named(self._machine.store):
            if not users:
                await run_to_completion(clone)
            else:  # written out before the freeze, so that the freeze is shorter
                await run_to_completion(self._disks.write_out, source)
                await self._machine.runs.freezing.while_frozen(users, clone)

    async def delete_disk(self, disk: DiskId) -> None:
        self._machine.runs.refuse_while_used(disk)
        await run_to_completion(self._disks.delete, disk)
