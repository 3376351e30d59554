"""End of a sandbox: its processes, its shim, what it leaves on the machine, and the watch for it."""

from __future__ import annotations

import asyncio
import logging
import shutil
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any

from builderd.engine.oci.runtime.launching import Runtime, RuntimeCommands
from builderd.engine.oci.runtime.records import Record
from builderd.engine.oci.runtime.run import RunContext
from builderd.linux.processes import Process, boot_id

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
            await self._commands.ask(runtime, runtime.command("kill", record.id, "TERM"))
        elif record.process:
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
                await self._commands.ask(runtime, runtime.command("delete", "--force", record.id))
        await asyncio.to_thread(self._remove_files, runtime, record.id)

    def _remove_files(self, runtime: Runtime | None, name: str) -> None:
        """Remove the groups, the runtime's state, and the bundle. Blocks."""
        self._context.cgroups.remove(f"{name}.shim")
        if runtime:  # its state: a folder of crun and runc, files named after it of gVisor
            shutil.rmtree(runtime.root / name, ignore_errors=True)
            for file in runtime.root.glob(f"*{name}*") if runtime.is_gvisor else ():
                file.unlink()
        self._context.cgroups.remove(name)
        shutil.rmtree(self._context.bundle(name), ignore_errors=True)


#: Time for a shim to end after its sandbox before it counts as lost.
_EXIT_FILE_SECONDS = 30.0


class Exits:
    """Watcher of shims, which end once they have written the exit file of their sandbox.

    ``ended`` returns True for a sandbox that has ended. ``end_unmonitored`` ends what a shim left that was killed, or
    does not end; it does nothing where the shim wrote an exit file.
    """

    def __init__(self, ended: Callable[[str], bool], end_unmonitored: Callable[[str], Awaitable[None]]) -> None:
        self._ended = ended
        self._end_unmonitored = end_unmonitored
        self._subscribers: set[asyncio.Queue[str]] = set()
        self._watches: dict[str, asyncio.Task[None]] = {}

    def close(self) -> None:
        for task in self._watches.values():
            task.cancel()
        self._watches.clear()

    def watch(self, name: str, process: Process, shim: Process | None) -> None:
        """Watch the end of a sandbox. ``shim`` None: it is gone. Needs a running event loop."""
        self._watches[name] = asyncio.get_running_loop().create_task(self._await_end(name, process, shim))

    async def wait(self, name: str, seconds: float) -> bool:
        """Wait for the end of a watched sandbox; return False when it has not ended by then."""
        if not self._ended(name) and (watch := self._watches.get(name)):
            await asyncio.wait({watch}, timeout=seconds)
        return self._ended(name)

    async def subscribe(self) -> AsyncIterator[str]:
        """Yield the ids of sandboxes that end from now on."""
        queue: asyncio.Queue[str] = asyncio.Queue()
        self._subscribers.add(queue)
        try:
            while True:
                yield await queue.get()
        finally:
            self._subscribers.discard(queue)

    async def _await_end(self, name: str, process: Process, shim: Process | None) -> None:
        try:
            if shim is not None:
                await _first(process.wait(), shim.wait())
                await shim.wait(_EXIT_FILE_SECONDS)
            await self._end_unmonitored(name)
            for queue in self._subscribers:
                queue.put_nowait(name)
        finally:
            if self._watches.get(name) is asyncio.current_task():
                del self._watches[name]


async def _first(*waits: Coroutine[Any, Any, bool]) -> None:
    """Return when the first of them returns; cancel the others."""
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
