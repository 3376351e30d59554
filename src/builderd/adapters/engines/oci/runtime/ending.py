"""End of a sandbox: its processes, its shim, and what it leaves on the machine."""

from __future__ import annotations

import asyncio
import logging
import shutil
import signal

from builderd.adapters.engines.oci.runtime import command
from builderd.adapters.engines.oci.runtime.command import Runtime
from builderd.adapters.engines.oci.runtime.records import Record
from builderd.adapters.engines.oci.runtime.run import RunContext
from builderd.adapters.engines.oci.runtime.runtime_commands import RuntimeCommands
from builderd.linux.processes import boot_id

log = logging.getLogger(__name__)

#: Time for a shim to end after its sandbox.
SHIM_SECONDS = 2.0
_INIT_SECONDS = 2.0


class Ending:
    """Ends sandboxes and removes what they leave, except records, exit files and slots."""

    def __init__(self, context: RunContext, commands: RuntimeCommands) -> None:
        self._context = context
        self._commands = commands

    async def terminate(self, record: Record) -> None:
        runtime = self._commands.runtime(record)
        if runtime.is_gvisor:
            await self._commands.ask(runtime, command.kill(runtime, record.id, "TERM"))
        elif record.process:
            await record.process.wait_until_signals_work(_INIT_SECONDS)
            record.process.kill(signal.SIGTERM)

    async def kill_all(self, record: Record) -> None:
        """Kill its processes and its shim, retrying while one waits for a device."""
        while True:
            if record.shim:
                record.shim.kill()
            try:
                await asyncio.to_thread(self._context.cgroups.kill, record.id)
                await asyncio.to_thread(self._context.cgroups.kill, f"{record.id}.shim")
            except TimeoutError as error:
                log.warning("sandbox could not be killed, retrying sandbox=%s error=%s", record.id, error)
            else:
                break
        if record.process:  # it leaves its control group a moment before it has ended
            await record.process.wait(_INIT_SECONDS)

    async def wait_for_shim(self, record: Record) -> None:
        """Wait until the shim of an ended sandbox has ended: until then the disk is in use."""
        if record.shim and not await record.shim.wait(SHIM_SECONDS):
            record.shim.kill()
            await record.shim.wait(SHIM_SECONDS)

    async def clean(self, record: Record) -> None:
        """Kill its processes and remove all but its record, its exit file and its slot. Idempotent.

        A shim gets time to write the exit file. A shim interrupted while creating the sandbox is in no record and may
        continue creating it, so its group is removed first, and then what it had made.
        """
        if self._context.cgroups.oom_kills(record.id):
            by_host = self._context.cgroups.host_oom_kills(record.id)
            self._context.records.note_oom(record.id, by_host=by_host)
        await asyncio.to_thread(self._context.cgroups.kill, record.id)
        if record.process and record.boot == boot_id():
            record.process.kill()
        await self.wait_for_shim(record)
        runtime = self._context.runtimes.get(record.runtime)
        # Of crun's, its folder is all that is left once the control groups are gone: its own command would start a
        # process to search them again.
        if runtime and runtime.name != "crun":
            await asyncio.to_thread(self._context.cgroups.remove, f"{record.id}.shim")
            if (runtime.root / record.id).exists():
                await self._commands.ask(runtime, command.delete(runtime, record.id))
        await asyncio.to_thread(self._remove_files, runtime, record.id)

    def _remove_files(self, runtime: Runtime | None, name: str) -> None:
        """Remove the groups, the runtime's state, and the bundle. Blocks."""
        self._context.cgroups.remove(f"{name}.shim")
        self._context.records.remove_unfinished_exit(name)
        if runtime:
            _forget(runtime, name)
        self._context.cgroups.remove(name)
        shutil.rmtree(self._context.config.bundle(name), ignore_errors=True)


def _forget(runtime: Runtime, name: str) -> None:
    """Remove the runtime's state of it: a folder of crun and runc, files named after it of gVisor."""
    shutil.rmtree(runtime.root / name, ignore_errors=True)
    if runtime.is_gvisor:
        for file in runtime.root.glob(f"*{name}*"):
            file.unlink()
