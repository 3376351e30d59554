"""Life of sandboxes on this machine: created, started, adopted by the next service, stopped, removed.

A crash may interrupt any step: a sandbox's record is written first and removed last, so leftovers are found by it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from contextlib import AsyncExitStack, ExitStack
from dataclasses import replace
from pathlib import Path
from weakref import WeakValueDictionary

from builderd.core.errors import EngineUnavailable, InvalidState
from builderd.engine.oci.runtime.creation import Creation
from builderd.engine.oci.runtime.ending import SHIM_SECONDS, Ending, Exits
from builderd.engine.oci.runtime.host_limits import NetlinkWatch
from builderd.engine.oci.runtime.launching import RuntimeCommands
from builderd.engine.oci.runtime.records import Record
from builderd.engine.oci.runtime.run import Run, RunContext
from builderd.linux.processes import Process, boot_id, find_process, is_alive
from builderd.linux.threads import run_to_completion

log = logging.getLogger(__name__)

_KILL_SECONDS = 5.0
#: A sandbox younger than this may have missed TERM, which is sent again after so many seconds.
_YOUNG_SECONDS, _AGAIN_SECONDS = 5.0, 1.0
_SWAPS = Path("/proc/swaps")
#: A later round takes pages that were used too recently for the first one.
_ROUNDS = 3


class Runs:
    """Sandboxes of one service, by their records."""

    def __init__(self, context: RunContext) -> None:
        self.records, cgroups = context.records, context.cgroups
        self.exits = Exits(self._has_ended, self._end_unmonitored)
        self.bundle = context.bundle
        self.launcher = context.launcher
        self.cgroups = cgroups
        self.network = context.network
        self.freezing = Freezing(context, self)
        self.heartbeat = context.heartbeat
        self._netlink = NetlinkWatch(self._processes, self._kill_for_memory)
        self.commands = RuntimeCommands(context.runtimes, context.launcher)
        self._creation = Creation(context)
        self._ending = Ending(context, self.commands)
        self._slots = context.slots
        self._known: dict[str, Record] = {}

    async def open(self, *, connecting: bool = True) -> None:
        """Adopt running sandboxes, and remove leftovers. Needs a running event loop.

        ``connecting``: their addresses take shares of ports, which needs the service's network.
        """
        self.records.open()
        self.records.sweep()
        self.bundle("").mkdir(mode=0o711, parents=True, exist_ok=True)
        if connecting:
            await self.share_ports(self.records.all())
        for record in self.records.all():
            self._known[record.id] = record
            if record.boot == boot_id():
                self._slots.occupy(record.slot, record.id)
                await self._adopt(record)
            self._note_last_beat(self._known[record.id])
            if record.is_build:
                try:
                    await self.remove(record)
                except TimeoutError as error:  # left to the next service
                    log.warning("leftover build not removed sandbox=%s error=%s", record.id, error)
        self.heartbeat.start(lambda: any(self.is_running(record) for record in self._known.values()))
        self._netlink.start()

    def _processes(self) -> list[tuple[str, Process]]:
        """Return the ids of all sandboxes that have a first process, with that process."""
        boot = boot_id()
        return [(one.id, one.process) for one in self._known.values() if one.process and one.boot == boot]

    def _kill_for_memory(self, name: str) -> None:
        self.records.note_oom(name)
        self.cgroups.kill(name)

    def _note_last_beat(self, record: Record) -> None:
        """Record the last heartbeat as the last sign of a sandbox that ended while no service or machine ran."""
        last = self.heartbeat.last()
        if record.started_at is None or self.is_running(record):
            return
        if record.seen_at is None and last is not None and last[0] == record.boot:
            self.save(replace(record, seen_at=last[1]))

    async def _adopt(self, record: Record) -> None:
        process = record.process
        if process is None:
            return
        if record.started_at is None and await self._was_started(record, process):
            record = self.save(replace(record, started_at=self.records.now()))
        if self.is_running(record):
            self.exits.watch(record.id, process, record.shim)
            if not is_alive(record.shim) and await self.exits.wait(record.id, _KILL_SECONDS):
                return
        if not process.alive:
            return
        record = self.newest(record)
        if not self.freezing.is_frozen(record):
            # A service that died during a disk copy or a freeze left it frozen.
            self.freezing.resume(record)

    async def _was_started(self, record: Record, process: Process) -> bool:
        """Return True when its program was started, and its service was killed before it recorded that.

        crun and runc themselves tell by the fifo at which a created container waits.
        """
        runtime = self.commands.runtime(record)
        if not process.alive and self.records.exit(record.id) is None:
            return False
        if not runtime.is_gvisor:
            state = runtime.root / record.id
            return state.is_dir() and not (state / "exec.fifo").exists()
        if not process.alive:
            return True
        _, text = await self.commands.ask(runtime, runtime.command("state", record.id), stream=1)
        return '"running"' in text

    def close(self) -> None:
        """Stop watching; sandboxes continue. Idempotent, also after an incomplete ``open``."""
        self.heartbeat.stop()
        self._netlink.close()
        self.freezing.close()
        self.exits.close()

    def find(self, name: str) -> Record | None:
        return self._known.get(name)

    def all(self) -> list[Record]:
        return list(self._known.values())

    async def record_after_exit(self, record: Record) -> Record:
        """Return the newest record; of a dead first process only after the shim has written its exit file."""
        # Asked first: usually it is alive, and one file says so.
        if record.process and not record.process.alive and self.is_running(record):
            await self.exits.wait(record.id, SHIM_SECONDS)
        return self.newest(record)

    def is_running(self, record: Record) -> bool:
        if record.started_at is None or record.process is None or record.boot != boot_id():
            return False
        if self.records.exit(record.id):
            return False
        # The first process is dead, and its shim is about to write the exit file.
        return record.process.alive or (record.shim is not None and record.shim.alive)

    def runs_now(self, name: str) -> bool:
        """Return True for a builder's sandbox that runs."""
        record = self.find(name)
        return record is not None and not record.is_build and self.is_running(record)

    def users_of(self, disk: str) -> list[Record]:
        """Return the sandboxes that run on this disk: the app's own, and those of its further processes."""
        return [one for one in self.all() if one.disk == disk and self.is_running(one)]

    def refuse_while_used(self, disk: str, label: str | None = None) -> None:
        """Raise ``InvalidState`` while a sandbox runs on the disk; given a ``label``, while one of this label does."""
        if any(label in (None, one.label) for one in self.users_of(disk)):
            raise InvalidState(f"A sandbox runs on the disk {disk}: stop it first.")

    async def start(self, run: Run) -> Record:
        """Create and start a sandbox. Raises ``EngineUnavailable`` on failure and leaves nothing."""
        record = self.begin(run)
        try:
            record = await self.create(run, record)
            record = await self.release(run, record)
        except BaseException:
            await asyncio.shield(self.remove(self._known[record.id]))
            raise
        return record

    def begin(self, run: Run) -> Record:
        """Take a slot and write the first record."""
        slot = self._slots.take(run.id)
        try:
            ip = self.network.addresses.of(slot, run.egress)
            record = Record(run.id, run.owner, run.disk, run.runtime.name, slot, ip, run.port, boot_id())
            return self.save(replace(record, tenant=run.tenant, label=run.label))
        except BaseException:
            self._slots.give_back(slot, run.id)
            self.records.remove(run.id)
            raise

    async def create(self, run: Run, record: Record) -> Record:
        """Create the sandbox, up to a first process that waits to execute the program."""
        uid = self._slots.uid(record.slot)
        bundle = self._creation.make_bundle(run, record, uid)
        sharing = asyncio.create_task(self.share_ports([record]))
        try:
            pid = await self._creation.launch_shim(run, record, bundle)
        finally:
            await sharing
        shim = int((bundle / "conmon.pid").read_text())
        record = self.save(replace(record, process=find_process(pid), shim=find_process(shim)))
        self.cgroups.limit_shim(run.id)
        self.cgroups.limit_sockets(run.id, run.memory_bytes)
        return record

    async def share_ports(self, records: Iterable[Record]) -> None:
        """Let the sandboxes' addresses take source ports from their tenants' shares."""
        tenants = {record.ip: record.tenant for record in records if record.tenant and record.boot == boot_id()}
        await asyncio.to_thread(self.network.share_ports, tenants)

    async def release(self, run: Run, record: Record) -> Record:
        """Let the first process execute the program."""
        started_at = self.records.now()
        argv = run.runtime.command("start", run.id)
        status, output = await self.commands.ask(run.runtime, argv, name=f"{run.id} start")
        if status:
            raise EngineUnavailable(f"{run.runtime.name} did not start the sandbox: {output.strip() or status}")
        record = self.save(replace(record, started_at=started_at))
        assert record.process
        self.exits.watch(run.id, record.process, record.shim)
        return record

    def newest(self, record: Record) -> Record:
        """Return the present record, such as after a wait."""
        return self._known.get(record.id, record)

    async def stop(self, record: Record, grace_seconds: float) -> Record:
        """Send TERM, then KILL. Returns when its exit is recorded and its mounts are gone."""
        record = await self.freezing.thaw(record)
        record = self.save(replace(record, stopping_at=record.stopping_at or self.records.now()))
        if not await self._ends_by_term(record, grace_seconds):
            await asyncio.to_thread(self.cgroups.kill, record.id)
            await self.exits.wait(record.id, _KILL_SECONDS)
        await self._ending.wait_for_shim(record)
        return record

    async def _ends_by_term(self, record: Record, grace_seconds: float) -> bool:
        """Send TERM, and again to a young sandbox: its init may not have forwarded the first.

        tini signals its child's process group, which exists only once the child has made it; inside gVisor that cannot
        be seen.
        """
        await self._ending.terminate(record)
        age = self.records.now() - record.started_at if record.started_at else _YOUNG_SECONDS
        if age >= _YOUNG_SECONDS or grace_seconds <= _AGAIN_SECONDS:
            return await self.exits.wait(record.id, grace_seconds)
        if await self.exits.wait(record.id, _AGAIN_SECONDS):
            return True
        await self._ending.terminate(record)
        return await self.exits.wait(record.id, grace_seconds - _AGAIN_SECONDS)

    def _has_ended(self, name: str) -> bool:
        record = self._known.get(name)
        if record is None or record.started_at is None:
            return self.records.exit(name) is not None
        return not self.is_running(record)

    async def _end_unmonitored(self, name: str) -> None:
        """End a whole sandbox whose shim died; do nothing when the shim lives or wrote the exit file.

        Such a sandbox's output is read by no process: writes fail or block, and its exit would never be recorded.
        """
        record = self._known.get(name)
        if record is None or self.records.exit(name) or (is_alive(record.shim) and is_alive(record.process)):
            return
        log.warning("sandbox monitor (conmon) died, ending the sandbox sandbox=%s builder=%s", name, record.owner)
        async with self.freezing.lock(record):
            self.freezing.end_reclaim(name)
            if is_alive(record.process):
                record = self.save(replace(self.newest(record), seen_at=self.records.now()))
            await self._ending.kill_all(record)

    async def clean(self, record: Record) -> None:
        """Kill its processes and remove all but its record, its exit file and its slot. Idempotent."""
        await self._ending.clean(record)

    async def remove(self, record: Record) -> None:
        """Remove everything but its log, and free its slot once the tracked flows of its address are deleted.

        Idempotent.
        """
        await self.clean(record)
        self.records.remove(record.id)
        self._known.pop(record.id, None)
        try:
            if record.boot == boot_id():
                # gVisor's own network stack dies without a word to its peers.
                await run_to_completion(self.network.forget, record.ip, abort=record.runtime == "runsc")
        except OSError:
            log.warning("flows of ended sandbox not deleted sandbox=%s ip=%s", record.id, record.ip, exc_info=True)
        finally:
            self._slots.give_back(record.slot, record.id)

    def save(self, record: Record) -> Record:
        """Write the record, which is the present one from then on."""
        self.records.save(record)
        self._known[record.id] = record
        return record


class Freezing:
    """Freezes and thaws sandboxes, one at a time each; work that needs one frozen takes the same lock."""

    def __init__(self, context: RunContext, known: Runs) -> None:
        self._cgroups = context.cgroups
        self._records = context.records
        self._known = known
        #: A task for each sandbox whose memory is being moved out.
        self._reclaiming: dict[str, asyncio.Task[None]] = {}
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    @property
    def is_idle(self) -> bool:
        """Return True if no sandbox is being frozen or thawed."""
        return not self._locks

    def lock(self, record: Record) -> asyncio.Lock:
        return self._locks.setdefault(record.id, asyncio.Lock())

    def is_frozen(self, record: Record) -> bool:
        return record.counts_as_frozen and self._cgroups.is_frozen(record.id)

    async def while_frozen(self, records: Sequence[Record], work: Callable[[], None]) -> None:
        """Run the work in a thread while the sandboxes are frozen, a matter of milliseconds.

        ``freeze`` and ``thaw`` wait for it. Not recorded: a starting service thaws every sandbox that ``freeze`` did
        not freeze. Raises ``EngineUnavailable`` when one of their processes cannot be frozen; then they continue.
        """
        async with AsyncExitStack() as stack:
            for record in sorted(records, key=lambda one: one.id):  # two that wait for each other's have one order
                await stack.enter_async_context(self.lock(record))
            await run_to_completion(self._work, [self._known.newest(record) for record in records], work)

    def _work(self, records: Sequence[Record], work: Callable[[], None]) -> None:
        with ExitStack() as stack:
            for record in records:
                if not self.is_frozen(record) and self._known.is_running(record):
                    stack.callback(self._cgroups.thaw, record.id)
                    self._freeze(record)
            work()

    def _freeze(self, record: Record) -> None:
        try:
            self._cgroups.freeze(record.id)
        except (TimeoutError, FileNotFoundError) as error:
            raise EngineUnavailable(f"The sandbox could not be frozen: {error}.") from error

    async def freeze(self, record: Record) -> None:
        """Freeze the sandbox; its memory is moved out in the background. Idempotent.

        Raises ``EngineUnavailable`` when one of its processes cannot be frozen; then it continues.
        """
        async with self.lock(record):
            record = self._known.newest(record)
            if self.is_frozen(record) or not self._known.is_running(record):
                return
            record = self._known.save(replace(record, frozen_at=self._records.now()))
            try:
                await run_to_completion(self._freeze, record)
            except EngineUnavailable:
                if self._known.is_running(record):
                    self.resume(record)
                raise
            if swaps_to_zram():
                task = self._reclaiming[record.id] = asyncio.create_task(self._reclaim(record.id))
                task.add_done_callback(lambda done: self._forget_reclaim(record.id, done))

    async def thaw(self, record: Record) -> Record:
        """Thaw the sandbox. Idempotent."""
        async with self.lock(record):
            record = self._known.newest(record)
            if not self.is_frozen(record):
                return record
            self.end_reclaim(record.id)
            return self.resume(record)

    def resume(self, record: Record) -> Record:
        """Thaw it, also when only its record says that it is frozen."""
        if record.counts_as_frozen:
            record = self._known.save(replace(record, thawed_at=self._records.now()))
        self._cgroups.thaw(record.id)
        return record

    async def _reclaim(self, name: str) -> None:
        for _ in range(_ROUNDS):
            await asyncio.to_thread(self._cgroups.reclaim, name)

    def _forget_reclaim(self, name: str, done: asyncio.Task[None]) -> None:
        if self._reclaiming.get(name) is done:
            del self._reclaiming[name]

    def end_reclaim(self, name: str) -> None:
        """Stop moving a frozen sandbox's memory out."""
        if task := self._reclaiming.pop(name, None):
            task.cancel()
        self._cgroups.end_reclaim(name)

    def close(self) -> None:
        for task in self._reclaiming.values():
            task.cancel()


def swaps_to_zram() -> bool:
    """Return True when this machine swaps to zram now: from a disk, thawing would be slow."""
    return _SWAPS.exists() and any(line.startswith("/dev/zram") for line in _SWAPS.read_text().splitlines())
