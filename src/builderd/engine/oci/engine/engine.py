"""The engine for one machine: OCI runtimes under conmon, on a btrfs store. Implements ``ports.engine.Engine``."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Collection, Mapping, Sequence

from builderd.core.errors import BuilderdError, EngineUnavailable
from builderd.core.ids import DiskId
from builderd.core.members import MemberReport
from builderd.core.resources import GB, Capacity, MachineUse
from builderd.engine.oci.engine.machine import Machine, measure
from builderd.engine.oci.engine.sandboxes import Disks, Sandboxes
from builderd.engine.oci.network.allocations import known_instance
from builderd.engine.oci.runtime.host_limits import total_memory
from builderd.engine.oci.runtime.logs import Logs
from builderd.engine.oci.runtime.records import Record
from builderd.engine.oci.runtime.runner import Tools
from builderd.engine.oci.storage.backing import free_bytes, total_bytes
from builderd.engine.oci.storage.base import UNUSED_SECONDS, collect_bases
from builderd.engine.oci.storage.files import Files
from builderd.engine.oci.storage.layers import Layers
from builderd.engine.port import Collected, EngineOptions, Progress, Readiness
from builderd.linux.processes import is_busy
from builderd.linux.threads import run_to_completion

#: Space is tight when less than this part of the store is free.
TIGHT = 0.2
#: Age at which the scratch folder of no running sandbox is removed; longer than making one and starting on it takes.
SCRATCH_SECONDS = 3_600.0
_DOWN_GRACE_SECONDS = 5.0


class OciEngine:
    """The machine is opened once by ``prepare``, closed with the service, or taken down."""

    def __init__(self, options: EngineOptions) -> None:
        self._options = options
        self._machine: Machine | None = None
        self._sandboxes: Sandboxes | None = None
        self._readiness = Readiness(False, "waiting to be prepared")
        self._preparing = asyncio.Lock()

    async def prepare(self, progress: Progress) -> None:
        async with self._preparing:
            if self._readiness.ready:
                return
            try:
                self._machine = await self._prepare(progress)
            except BuilderdError as error:
                self._readiness = Readiness(False, error.message)
                raise
            except OSError as error:
                # A fault of the machine, such as a full disk: the service continues without the engine and retries.
                cure = (
                    f" Free space on the host: df -h {self._options.data_dir}." if error.errno == errno.ENOSPC else ""
                )
                self._readiness = Readiness(False, f"The engine could not be opened: {error}.{cure}")
                raise EngineUnavailable(self._readiness.message) from error
            self._readiness = Readiness(True, "ready")

    async def _prepare(self, progress: Progress) -> Machine:
        def on_progress(line: str) -> None:
            self._readiness = Readiness(False, line)
            progress(line)

        machine = await asyncio.to_thread(Machine, self._options)
        try:
            await machine.open(on_progress)
        except BaseException:
            machine.close()  # or the next attempt would find the store in use
            raise
        return machine

    def readiness(self) -> Readiness:
        failure = self._machine.store.failure() if self._machine and self._readiness.ready else None
        return failure or self._readiness

    # Its parts

    @property
    def _here(self) -> Machine:
        """The open machine. Raises ``EngineUnavailable`` before and after."""
        if self._machine is None:
            raise EngineUnavailable(f"The engine is not ready: {self._readiness.message}.", retry_after=5)
        return self._machine

    @property
    def sandboxes(self) -> Sandboxes:
        machine = self._here
        self._sandboxes = self._sandboxes or Sandboxes(machine)
        return self._sandboxes

    @property
    def disks(self) -> Disks:
        return Disks(self._here)

    @property
    def files(self) -> Files:
        return self._here.files

    @property
    def layers(self) -> Layers:
        return self._here.layers

    @property
    def logs(self) -> Logs:
        return self._here.logs

    @property
    def tools(self) -> Tools:
        return self._here.tools

    # What concerns all of them

    def capacity(self) -> Capacity:
        disks = self._here.store.reservations.capacity()
        return Capacity(float(os.cpu_count() or 1), total_memory() / GB, disks / GB)

    async def use(self) -> MachineUse:
        return await asyncio.to_thread(measure, self._options.data_dir, self._options.store)

    async def collect(self, keep: Collection[str], unused_seconds: float) -> Collected:
        return await run_to_completion(self._collect, frozenset(keep), unused_seconds)

    def _collect(self, keep: Collection[str], unused_seconds: float) -> Collected:
        here = self._here
        layers = here.layers.collect(keep, unused_seconds)
        bases = collect_bases(here.base, max(unused_seconds, UNUSED_SECONDS))
        running = [record for record in here.runs.all() if here.runs.is_running(record)]
        used = {name for record in running for name in (record.disk, record.id)}
        return Collected(layers, bases, here.disks.collect_scratch(used, min(unused_seconds, SCRATCH_SECONDS)))

    def is_busy(self) -> bool:
        return is_busy()

    def is_tight(self) -> bool:
        store = self._here.store
        return store.is_short() or free_bytes(store.root) < total_bytes(store.root) * TIGHT

    async def members(self) -> Sequence[MemberReport]:
        return []

    async def disk_members(self) -> Mapping[DiskId, str]:
        return {}

    async def move_disk(self, disk: DiskId) -> str:
        return ""

    def write_off(self, disk: DiskId) -> None:
        """Do nothing: there is this machine only."""

    async def close(self) -> None:
        if machine := self._machine:
            machine.close()
        self._machine = self._sandboxes = None
        self._readiness = Readiness(False, "closed")

    async def down(self) -> None:
        """End all sandboxes and give back what the machine has reserved for the service, opened or not."""
        machine = self._machine
        if machine is None:
            if known_instance(self._options.data_dir) is None:
                return
            machine = self._machine = await asyncio.to_thread(Machine, self._options)
            await machine.runs.open(connecting=False)
        self._readiness = Readiness(False, "going down")
        await asyncio.gather(*(_end(machine, record) for record in machine.runs.all()))
        machine.runs.close()
        machine.launcher.close()
        machine.files.close()
        machine.disks.close()
        await asyncio.to_thread(machine.give_back)
        self._readiness = Readiness(False, "down")


async def _end(machine: Machine, record: Record) -> None:
    """Stop one sandbox; the record of its end is kept."""
    if machine.runs.is_running(record):
        record = await machine.runs.stop(record, _DOWN_GRACE_SECONDS)
    await machine.runs.clean(record)
