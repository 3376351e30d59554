"""The engine's machine from its opening to its end: made ready once, closed with the service, or taken down."""

from __future__ import annotations

import asyncio
import errno

from builderd.adapters.engines.oci.engine.machine import Machine
from builderd.adapters.engines.oci.engine.starting import Starting
from builderd.adapters.engines.oci.network.allocations import known_instance
from builderd.adapters.engines.oci.runtime.records import Record
from builderd.domain.errors import BuilderdError, EngineUnavailable
from builderd.ports.engine import EngineOptions, Progress, Readiness

_DOWN_GRACE_SECONDS = 5.0


class OpenedMachine:
    """``machine`` is None until ``prepare`` has opened it, and after ``close``."""

    def __init__(self, options: EngineOptions) -> None:
        self._options = options
        self.machine: Machine | None = None
        self._starting: Starting | None = None
        self._readiness = Readiness(False, "waiting to be prepared")
        self._preparing = asyncio.Lock()

    async def prepare(self, progress: Progress) -> None:
        """Open the machine. Idempotent. Raises ``BuilderdError``."""
        async with self._preparing:
            if self._readiness.ready:
                return
            try:
                self.machine = await self._prepare(progress)
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
            self._starting = Starting(self.machine, self._options)
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
        failure = self.machine.store.failure() if self.machine and self._readiness.ready else None
        return failure or self._readiness

    @property
    def here(self) -> Machine:
        """The open machine. Raises ``EngineUnavailable`` before and after."""
        if self.machine is None:
            raise self._not_ready()
        return self.machine

    @property
    def starter(self) -> Starting:
        """The starts on the open machine. Raises ``EngineUnavailable`` before and after."""
        if self._starting is None:
            raise self._not_ready()
        return self._starting

    def _not_ready(self) -> EngineUnavailable:
        return EngineUnavailable(f"The engine is not ready: {self._readiness.message}.", retry_after=5)

    async def close(self) -> None:
        """Close the machine; its sandboxes continue. Idempotent."""
        if machine := self.machine:
            machine.close()
        self.machine = None
        self._readiness = Readiness(False, "closed")

    async def down(self) -> None:
        """End all sandboxes and give back what the machine holds for the service, opened or not."""
        machine = self.machine
        if machine is None:
            if known_instance(self._options.data_dir) is None:
                return
            machine = self.machine = await asyncio.to_thread(Machine, self._options)
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
