"""Sandboxes on this machine, from the first file to the last: made, started, found again, stopped, removed.

Each is made in an order that a crash can cut anywhere: its record comes first and goes last, so whatever is left over
is found by it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import shutil
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from builderd.adapters.engines.oci.network.host_files import write_own_files
from builderd.adapters.engines.oci.network.network import Network
from builderd.adapters.engines.oci.network.slots import Slots
from builderd.adapters.engines.oci.runtime import command, exec_fifo, secret_files
from builderd.adapters.engines.oci.runtime.bundle import Container, make_config
from builderd.adapters.engines.oci.runtime.cgroups import Cgroups
from builderd.adapters.engines.oci.runtime.command import Runtime
from builderd.adapters.engines.oci.runtime.exits import Exits
from builderd.adapters.engines.oci.runtime.heartbeat import Heartbeat
from builderd.adapters.engines.oci.runtime.launching import Ended, Launcher
from builderd.adapters.engines.oci.runtime.netlink_watch import NetlinkWatch
from builderd.adapters.engines.oci.runtime.reclaiming import Reclaiming
from builderd.adapters.engines.oci.runtime.records import Record, Records
from builderd.adapters.engines.oci.runtime.root import (
    HIDE_NETWORK_PARAMETERS,
    Root,
    make_mounts,
    mount_points,
    overlay_paths,
)
from builderd.domain.errors import EngineUnavailable
from builderd.linux.json_files import write_json
from builderd.linux.pipes import read_line
from builderd.linux.processes import Process, boot_id, find_process, open_files
from builderd.linux.threads import to_its_end

log = logging.getLogger(__name__)

_CREATE_SECONDS = 30.0
#: How long a shim may live on after its sandbox's end.
_SHIM_SECONDS = 2.0
_KILL_SECONDS = 5.0
_WARM_SECONDS = 0.2
_INIT_SECONDS = 2.0
#: A sandbox that was started so lately may not have heard that it is to end: it is asked again after so many seconds.
_YOUNG_SECONDS, _AGAIN_SECONDS = 5.0, 1.0
_SHIM_ENV = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "_OCI_SYNCPIPE": "3"}


@dataclass(frozen=True, slots=True)
class Run:
    """What to run. ``owner`` and ``disk`` are a builder's and empty for a build; ``user`` is the id inside.

    ``tmpfs`` maps paths inside to sizes in bytes, ``secret_files`` paths below ``/run/credentials`` to their text.
    ``capabilities`` and ``host_network`` are for trusted tools.
    """

    id: str
    owner: str
    disk: str
    runtime: Runtime
    root: Root
    hostname: str
    port: int
    argv: Sequence[str]
    env: Mapping[str, str]
    cwd: str
    user: int
    cpu: float
    memory_bytes: int
    pids: int
    egress: bool
    log: Path
    log_limit: int
    tmpfs: Mapping[str, int] = field(default_factory=dict)
    secret_files: Mapping[str, str] = field(default_factory=dict)
    capabilities: tuple[str, ...] = ()
    host_network: bool = False


@dataclass(frozen=True, slots=True)
class Places:
    """``run_dir`` holds run-time files, searchable by all; ``store`` is mounted.

    ``seccomp`` goes into the bundles of apps, ``build_seccomp`` into those of builds and tools.
    """

    run_dir: Path
    store: Path
    seccomp: Mapping[str, Any]
    build_seccomp: Mapping[str, Any]

    def bundle(self, name: str) -> Path:
        return self.run_dir / "sandboxes" / name


class Runs:
    def __init__(
        self,
        places: Places,
        records: Records,
        launcher: Launcher,
        cgroups: Cgroups,
        network: Network,
        slots: Slots,
        runtimes: Mapping[str, Runtime],
        heartbeat: Heartbeat,
    ) -> None:
        self.exits = Exits(records.exits, self._has_ended, self._end_unmonitored)
        self.records = records
        self.places = places
        self.launcher = launcher
        self.cgroups = cgroups
        self.network = network
        self.reclaiming = Reclaiming(cgroups)
        self.heartbeat = heartbeat
        self._netlink = NetlinkWatch(self._processes, self._kill_for_memory)
        self._slots = slots
        self._runtimes = runtimes
        self._known: dict[str, Record] = {}
        #: Builds and tools of an earlier service, for as long as they cannot be ended.
        self._left_over: dict[str, Record] = {}
        #: Held while one is told to stand still or to go on, and while others count on that it stands still.
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._warming: asyncio.Task[None] | None = None
        self._leaving: set[asyncio.Task[None]] = set()

    async def open(self, *, connecting: bool = True) -> None:
        """Adopt what runs, and remove what no service can use any more. Needs a running event loop.

        ``connecting``: what lost its link gets another one, for which there must be a network.
        """
        self.records.open()
        self.records.sweep()
        (self.places.run_dir / "sandboxes").mkdir(mode=0o711, parents=True, exist_ok=True)
        self.exits.open()
        for record in self.records.all():
            self._known[record.id] = record
            if record.boot == boot_id():
                self._slots.occupy(record.slot, record.id)
                await self._adopt(record, connecting=connecting)
            self._note_last_beat(self._known[record.id])
            if record.is_build:
                self._left_over[record.id] = record
        await self.sweep()
        self.heartbeat.start(lambda: any(self.is_running(record) for record in self._known.values()))
        self._netlink.start()

    def _processes(self) -> list[tuple[str, Process]]:
        """The ids of all sandboxes that have a first process, with that process."""
        boot = boot_id()
        return [(one.id, one.process) for one in self._known.values() if one.process and one.boot == boot]

    def _kill_for_memory(self, name: str) -> None:
        self.records.note_oom(name)
        self.cgroups.kill(name)

    async def sweep(self) -> None:
        """End the builds and tools of the service before. What cannot be killed now is kept for the next sweep."""
        for record in list(self._left_over.values()):
            try:
                await self.remove(record)
            except TimeoutError as error:
                log.warning("what is left of build %s keeps its slot: %s", record.id, error)
            else:
                self._left_over.pop(record.id, None)

    def _note_last_beat(self, record: Record) -> None:
        """Of one that ended unseen, while no service or no machine ran: before the heartbeat goes on."""
        last = self.heartbeat.last()
        if record.started_at is None or self.is_running(record):
            return
        if record.seen_at is None and last is not None and last.boot == record.boot:
            self._save(replace(record, seen_at=last.at))

    async def _adopt(self, record: Record, *, connecting: bool) -> None:
        process = record.process
        if process is None or not process.alive:
            return
        if record.started_at is None and await self._runs(record):
            record = self._save(replace(record, started_at=self.records.now()))
        if record.started_at is not None:
            self.exits.watch(record.id, process, record.shim)
            if not is_alive(record.shim) and await self.exits.wait(record.id, _KILL_SECONDS):
                return
        if connecting:
            await self._connect_again(record)
        record = self._newest(record)
        if not self.is_frozen(record):
            # A service that died while it copied the disk left it standing still, or on the way to being frozen.
            self._go_on(record)

    async def _connect_again(self, record: Record) -> None:
        """Whoever tidied up the host's network took the link away, or the bridge at its other end."""
        if record.is_build or self.network.is_connected(record.slot):
            return
        log.warning("sandbox %s lost its link to the network and gets another", record.id)
        if self.runtime(record).is_gvisor:
            # Its own network stack took over the link that it began with.
            try:
                await self.stop(record, 0)
            except TimeoutError as error:
                log.warning("sandbox %s cannot be ended: %s", record.id, error)
            return
        egress = self.network.addresses.of(record.slot, egress=True) == record.ip
        assert record.process, "it lives"
        await self.launcher.attach(record.process.pid, self.network.link(record.slot, egress))

    async def _runs(self, record: Record) -> bool:
        """Whether the runtime was told to start it before the last service ended."""
        runtime = self.runtime(record)
        _, state = await self._ask(runtime, command.state(runtime, record.id), stream=1)
        return '"running"' in state

    def close(self) -> None:
        """What runs goes on, and is watched no more. Idempotent, also where opening it failed half-way."""
        self.heartbeat.stop()
        self._netlink.close()
        self._stop_warming()
        for task in self._leaving:
            task.cancel()
        self.reclaiming.close()
        self.exits.close()

    def find(self, name: str) -> Record | None:
        return self._known.get(name)

    def all(self) -> list[Record]:
        return list(self._known.values())

    def runtime(self, record: Record) -> Runtime:
        """Raises ``EngineUnavailable`` when the program was removed from the host meanwhile."""
        if runtime := self._runtimes.get(record.runtime):
            return runtime
        raise EngineUnavailable(f"{record.runtime}, under which this sandbox runs, is not installed any more.")

    async def written_down(self, record: Record) -> Record:
        """What is known of it, once its shim has written down the end of a first process that is dead: a moment."""
        if self.is_running(record) and record.process and not record.process.alive:
            await self.exits.wait(record.id, _SHIM_SECONDS)
        return self._newest(record)

    def is_running(self, record: Record) -> bool:
        if record.started_at is None or record.process is None or record.boot != boot_id():
            return False
        if self.records.exit(record.id):
            return False
        # The first process is dead but its shim has not written that down yet: it is about to.
        return record.process.alive or (record.shim is not None and record.shim.alive)

    async def start(self, run: Run) -> Record:
        """Make it and let it run. Raises ``EngineUnavailable`` and leaves nothing when that fails."""
        record = self._begin(run)
        try:
            with self.cgroups.moves.expected():
                record = await self._create(run, record)
                record = await self._start(run, record)
        except BaseException:
            await asyncio.shield(self.remove(self._known[record.id]))
            raise
        self._stop_warming()
        self._warming = asyncio.get_running_loop().create_task(self._warm(run.root.owners))
        return record

    def _begin(self, run: Run) -> Record:
        """A slot, and the record that has it from now on."""
        slot = self._slots.take(run.id)
        try:
            ip = self.network.addresses.of(slot, run.egress)
            return self._save(Record(run.id, run.owner, run.disk, run.runtime.name, slot, ip, run.port, boot_id()))
        except BaseException:
            self._slots.give_back(slot, run.id)
            self.records.remove(run.id)
            raise

    def _stop_warming(self) -> None:
        if self._warming:
            self._warming.cancel()

    async def _warm(self, owners: Sequence[int]) -> None:
        """Have ready what the next start will need, once the app has had the CPU. If it fails, that start says why."""
        await asyncio.sleep(_WARM_SECONDS)
        slot = self._slots.next()
        if slot is not None:
            with contextlib.suppress(EngineUnavailable):
                await self.launcher.keep_maps(self._slots.uid(slot), owners)

    async def _create(self, run: Run, record: Record) -> Record:
        """Everything up to a first process that waits for the word to execute the program."""
        uid = self._slots.uid(record.slot)
        bundle = self._make_bundle(run, record, uid)
        pid = await self._launch_shim(run, record, bundle)
        shim = int((bundle / "conmon.pid").read_text())
        record = self._save(replace(record, process=find_process(pid), shim=find_process(shim)))
        self.cgroups.limit_shim(run.id)
        self.cgroups.limit_sockets(run.id, run.memory_bytes)
        if not run.host_network:
            await self.launcher.attach(pid, self.network.link(record.slot, run.egress))
        return record

    def _make_bundle(self, run: Run, record: Record, uid: int) -> Path:
        bundle = self.places.bundle(run.id)
        shutil.rmtree(bundle, ignore_errors=True)
        bundle.mkdir(mode=0o711)
        for folder in mount_points(run.root, bundle):
            folder.mkdir(mode=0o711)
        for folder in overlay_paths(run.root):
            os.chown(folder, uid, uid)
        if run.root.scratch:
            write_own_files(run.root.scratch / "upper", run.hostname, record.ip, uid)
            if run.secret_files:
                secret_files.write(bundle, run.secret_files, uid + run.user)
                secret_files.make_target(run.root.scratch / "upper", uid)
        write_json(bundle / "config.json", make_config(self._container(run, bundle, uid)))
        return bundle

    def _container(self, run: Run, bundle: Path, uid: int) -> Container:
        return Container(
            root=str(bundle / "root"),
            argv=run.argv,
            env=run.env,
            cwd=run.cwd,
            hostname=run.hostname,
            uid=uid,
            user=run.user,
            cgroup=self.cgroups.path(run.id),
            cpu=run.cpu,
            memory_bytes=run.memory_bytes,
            pids=run.pids,
            seccomp=self.places.seccomp if run.owner else self.places.build_seccomp,
            open_files=open_files(),
            read_only=run.root.scratch is None,
            tmpfs=run.tmpfs,
            shared=tuple(b.target for b in run.root.binds if not b.read_only) if run.runtime.is_gvisor else (),
            capabilities=run.capabilities,
            host_network=run.host_network,
        )

    async def _launch_shim(self, run: Run, record: Record, bundle: Path) -> int:
        """The number of the sandbox's first process, as the shim tells it."""
        kept = self.records.folder(run.id)
        argv = command.shim(run.runtime, run.id, bundle, kept, self.records.exits, run.log, run.log_limit)
        # While a first mover waits, so does whoever makes a group: not the loop.
        tasks = await to_its_end(self.cgroups.open_shim, run.id)
        read, write = os.pipe2(os.O_CLOEXEC)
        try:
            ended = await self.launcher.run(
                argv,
                env=_SHIM_ENV,
                cwd=str(bundle),  # where the shim leaves a second "oom" file
                descriptors={3: write},
                mounts=[*make_mounts(_root(run, bundle), bundle, self.places.store), *around(run.runtime)],
                cgroups=[tasks],
                uid=self._slots.uid(record.slot),
            )
            return first_process(ended, await read_line(read, _CREATE_SECONDS))
        except TimeoutError as error:
            raise EngineUnavailable(f"{run.runtime.name} did not make the sandbox in time.") from error
        finally:
            os.close(read)

    async def _start(self, run: Run, record: Record) -> Record:
        started_at = self.records.now()
        if run.runtime.name != "crun" or not await exec_fifo.release(run.runtime.root / run.id):
            status, words = await self._ask(run.runtime, command.start(run.runtime, run.id))
            if status:
                raise EngineUnavailable(f"{run.runtime.name} did not start the sandbox: {words.strip() or status}")
        record = self._save(replace(record, started_at=started_at))
        assert record.process
        self.exits.watch(run.id, record.process, record.shim)
        return record

    async def _ask(self, runtime: Runtime, argv: Sequence[str], stream: int = 2) -> tuple[int, str]:
        """Run a runtime's command; its exit status and what it wrote to one of its streams (at most a pipe's worth)."""
        read, write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            ended = await self.launcher.run(argv, env=_SHIM_ENV, descriptors={stream: write}, mounts=around(runtime))
            with contextlib.suppress(BlockingIOError):
                return ended.status, os.read(read, 65536).decode(errors="replace")
            return ended.status, ended.error
        finally:
            os.close(read)

    def is_frozen(self, record: Record) -> bool:
        return _counts_as_frozen(record) and self.cgroups.is_frozen(record.id)

    async def while_still(self, record: Record, work: Callable[[], None]) -> None:
        """Do the work in a thread while nothing in the sandbox goes on, a matter of milliseconds.

        Whoever wants it frozen or thawed waits for that. Not written down: a service that starts has everything go on
        that was not frozen to stay so. Raises ``EngineUnavailable`` when one of its processes does not stand still;
        then it goes on.
        """
        async with self._turn(record):
            await to_its_end(self._do_while_still, self._newest(record), work)

    def _do_while_still(self, record: Record, work: Callable[[], None]) -> None:
        if self.is_frozen(record) or not self.is_running(record):
            work()
            return
        try:
            self._stand_still(record)
            work()
        finally:
            self.cgroups.thaw(record.id)

    def _stand_still(self, record: Record) -> None:
        try:
            self.cgroups.freeze(record.id)
        except (TimeoutError, FileNotFoundError) as error:
            raise EngineUnavailable(f"The sandbox could not be made to stand still: {error}.") from error

    async def freeze(self, record: Record) -> None:
        """Have it stand still; its memory is moved out in the background. Idempotent.

        Raises ``EngineUnavailable`` when one of its processes does not stand still; then it goes on.
        """
        async with self._turn(record):
            record = self._newest(record)
            if self.is_frozen(record) or not self.is_running(record):
                return
            record = self._save(replace(record, frozen_at=self.records.now()))
            try:
                await to_its_end(self.cgroups.freeze, record.id)
            except (TimeoutError, FileNotFoundError) as error:
                if self.is_running(record):
                    self._go_on(record)
                raise EngineUnavailable(f"The sandbox could not be frozen: {error}.") from error
            self.reclaiming.begin(record.id)

    async def thaw(self, record: Record) -> Record:
        """Have it go on. Idempotent."""
        async with self._turn(record):
            record = self._newest(record)
            if not self.is_frozen(record):
                return record
            self.reclaiming.end(record.id)
            return self._go_on(record)

    def _go_on(self, record: Record) -> Record:
        """Also where it only counts as frozen."""
        if _counts_as_frozen(record):
            record = self._save(replace(record, thawed_at=self.records.now()))
        self.cgroups.thaw(record.id)
        return record

    def _turn(self, record: Record) -> asyncio.Lock:
        return self._turns.setdefault(record.id, asyncio.Lock())

    def _newest(self, record: Record) -> Record:
        """What is written down of it by now, such as after a wait."""
        return self._known.get(record.id, record)

    async def stop(self, record: Record, grace_seconds: float) -> Record:
        """TERM, then KILL. Returns when its end is written down and its mounts are gone."""
        record = await self.thaw(record)
        record = self._save(replace(record, stopping_at=record.stopping_at or self.records.now()))
        if not await self._ends_when_asked(record, grace_seconds):
            await asyncio.to_thread(self.cgroups.kill, record.id)
            await self.exits.wait(record.id, _KILL_SECONDS)
        await self._settle(record)
        return record

    async def _ends_when_asked(self, record: Record, grace_seconds: float) -> bool:
        """TERM, and once more for one that was only just started: its init may not have passed on the first.

        tini signals the group of its child, which is there only once the child has made it; what runs in gVisor cannot
        be looked at.
        """
        await self._terminate(record)
        age = self.records.now() - record.started_at if record.started_at else _YOUNG_SECONDS
        if age >= _YOUNG_SECONDS or grace_seconds <= _AGAIN_SECONDS:
            return await self.exits.wait(record.id, grace_seconds)
        if await self.exits.wait(record.id, _AGAIN_SECONDS):
            return True
        await self._terminate(record)
        return await self.exits.wait(record.id, grace_seconds - _AGAIN_SECONDS)

    async def _terminate(self, record: Record) -> None:
        runtime = self.runtime(record)
        if runtime.is_gvisor:
            await self._ask(runtime, command.kill(runtime, record.id, "TERM"))
        elif record.process:
            await record.process.wait_until_hearing(_INIT_SECONDS)
            record.process.kill(signal.SIGTERM)

    def _has_ended(self, name: str) -> bool:
        record = self._known.get(name)
        if record is None or record.started_at is None:
            return self.records.exit(name) is not None
        return not self.is_running(record)

    async def _end_unmonitored(self, name: str) -> bool:
        """End a sandbox as a whole whose shim is gone; False where the shim is there, or wrote down how it ended.

        Nobody reads what such a sandbox prints: writing fails or blocks, and its end would never be written down.
        """
        record = self._known.get(name)
        if record is None or self.records.exit(name) or (is_alive(record.shim) and is_alive(record.process)):
            return False
        log.warning("sandbox monitor (conmon) died, ending the sandbox sandbox=%s builder=%s", name, record.owner)
        async with self._turn(record):
            self.reclaiming.end(name)
            if is_alive(record.process):
                record = self._save(replace(self._newest(record), seen_at=self.records.now()))
            await self._kill_all(record)
        return True

    async def _kill_all(self, record: Record) -> None:
        """Kill its processes and its shim, however long one of them waits for a device."""
        while True:
            if record.shim:
                record.shim.kill()
            try:
                await asyncio.to_thread(self.cgroups.kill, record.id)
                await asyncio.to_thread(self.cgroups.kill, f"{record.id}.shim")
            except TimeoutError as error:
                log.warning("sandbox could not be killed, retrying sandbox=%s error=%s", record.id, error)
            else:
                return

    async def _settle(self, record: Record) -> None:
        """Wait until the shim of an ended sandbox has ended too: until then the disk is in use."""
        if record.shim and not await record.shim.wait(_SHIM_SECONDS):
            record.shim.kill()
            await record.shim.wait(_SHIM_SECONDS)

    async def clean(self, record: Record) -> None:
        """Kill what runs of it and take away all but its record, how it ended, and its slot. Idempotent.

        A shim that knows of no end yet gets the time to write it down. One that was broken off while it had the
        sandbox made is in no record and may make more of it, so its group goes first, and then what it had made.
        """
        if self.cgroups.oom_kills(record.id):
            self.records.note_oom(record.id)
        await asyncio.to_thread(self.cgroups.kill, record.id)
        if record.process and record.boot == boot_id():
            record.process.kill()
        await self._settle(record)
        await asyncio.to_thread(self.cgroups.remove, f"{record.id}.shim")
        if runtime := self._runtimes.get(record.runtime):
            await self._forget(runtime, record.id)
        await asyncio.to_thread(self.cgroups.remove, record.id)
        shutil.rmtree(self.places.bundle(record.id), ignore_errors=True)

    async def _forget(self, runtime: Runtime, name: str) -> None:
        """Have the runtime keep nothing of it: crun and runc a folder, gVisor files with its name in theirs."""
        if (runtime.root / name).exists():
            await self._ask(runtime, command.delete(runtime, name))
            shutil.rmtree(runtime.root / name, ignore_errors=True)
        if runtime.is_gvisor:
            for file in runtime.root.glob(f"*{name}*"):
                file.unlink()

    async def remove(self, record: Record) -> None:
        """Take away everything but its log. Idempotent."""
        await self.clean(record)
        self.records.remove(record.id)
        self._known.pop(record.id, None)
        task = asyncio.get_running_loop().create_task(self._vacate(record))
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)

    async def _vacate(self, record: Record) -> None:
        """Its address is another's once its flows are forgotten: milliseconds that nobody waits for."""
        try:
            if record.boot == boot_id():
                await asyncio.to_thread(self.network.forget, record.ip)
        except OSError:
            log.warning("what %s left open counts for the next sandbox with its address", record.id, exc_info=True)
        self._slots.give_back(record.slot, record.id)

    def _save(self, record: Record) -> Record:
        self.records.save(record)
        self._known[record.id] = record
        return record


def _root(run: Run, bundle: Path) -> Root:
    """With the secret files, where there are any."""
    if not run.secret_files:
        return run.root
    return replace(run.root, binds=(*run.root.binds, secret_files.bind(bundle)))


def is_alive(process: Process | None) -> bool:
    return process is not None and process.alive


def _counts_as_frozen(record: Record) -> bool:
    """Whether it was last told to stand still until it is told otherwise."""
    return record.frozen_at is not None and (record.thawed_at or 0) < record.frozen_at


def around(runtime: Runtime) -> list[dict[str, Any]]:
    """Mounts that every command of this runtime needs."""
    return [HIDE_NETWORK_PARAMETERS] if runtime.is_gvisor else []


def first_process(ended: Ended, word: bytes) -> int:
    """From what the launcher and the shim say of a sandbox that was to be made. Raises ``EngineUnavailable``."""
    if ended.error:
        raise EngineUnavailable(f"The sandbox could not be made: {ended.error}.")
    if not word:
        raise EngineUnavailable(f"The sandbox's shim ended without a word (exit status {ended.status}).")
    answer = json.loads(word)
    if answer["data"] <= 0:
        raise EngineUnavailable(f"The sandbox could not be made: {str(answer.get('message', '')).strip()}")
    return int(answer["data"])
