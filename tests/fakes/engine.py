"""Engine in memory. Nothing runs: a ``Behaviour`` scripts what a started app does, report by report.

Time is counted in looks, not by the clock: every ``report``, ``listening`` or ``list_sandboxes`` of a sandbox is one
look. ``behave`` scripts an entrypoint, ``answer`` a process started beside it, ``end`` and ``lose`` end a sandbox from
outside, ``fail_next`` makes a method raise, ``calls`` lists the calls made.
"""

from __future__ import annotations

import asyncio
import shlex
from collections import deque
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

from tests.fakes.disk_files import FakeDisk, FakeDiskFiles
from tests.fakes.layers import FakeLayers
from tests.fakes.logs import FakeLogs
from tests.fakes.processes import Answer, FakeProcess
from tests.fakes.sandboxes import Behaviour, FakeSandbox, absent_report

from builderd.code.model import Bundle, changes
from builderd.core.errors import EngineUnavailable, InvalidState, NotFound, ValidationFailed
from builderd.core.ids import DiskId, SandboxId
from builderd.core.members import MemberReport
from builderd.core.resources import Capacity, MachineUse
from builderd.engine.port import Collected, DiskReport, Process, Progress, Readiness, Tool, ToolExit, read_each
from builderd.executions.model import ProcessSpec
from builderd.sandboxes.model import EndCause, Listening, SandboxEnd, SandboxReport, SandboxSpec, SandboxUsage
from builderd.versions.model import Isolation

TERMINATED_EXIT_CODE = 143


class FakeEngine(FakeDiskFiles, FakeLayers, FakeLogs):
    """Implements ``ports.engine.Engine``. ``now`` stamps starts, ends and log lines."""

    @property
    def sandboxes(self) -> FakeEngine:
        """All its parts are itself."""
        return self

    disks = files = layers = logs = tools = sandboxes

    def __init__(self, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        FakeDiskFiles.__init__(self)
        FakeLayers.__init__(self, now)
        self.processes: list[ProcessSpec] = []
        self.tight = False
        self.busy = False
        self.known: dict[SandboxId, FakeSandbox] = {}
        self.ready = False
        #: Reason by isolation that is not supported.
        self.unsupported: dict[Isolation, str] = {}
        #: Members of the cluster that it plays, if any, and the one on which sandboxes start.
        self.cluster: list[MemberReport] = []
        self.member = ""
        #: Disks whose member is to be emptied.
        self.leaving: set[DiskId] = set()
        #: Further disks of default size that it has space for.
        self.disks_left = 1000
        self._behaviours: dict[str, deque[Behaviour]] = {}
        self._answers: dict[str, Answer] = {}
        self._watchers: set[asyncio.Queue[SandboxId]] = set()
        self._addresses = 0

    # Controls

    def behave(self, entrypoint: str, *behaviours: Behaviour) -> None:
        """Script the next starts of an entrypoint in turn; the last one stays in force."""
        self._behaviours[entrypoint] = deque(behaviours)

    def answer(self, command: str, answer: Answer) -> None:
        """Script a command line; others exit with 0 and no output."""
        self._answers[command] = answer

    def end(self, sandbox: SandboxId, cause: EndCause = EndCause.EXITED, exit_code: int | None = 0) -> None:
        """Let the app end now, and report it to ``exits``."""
        found = self.known[sandbox]
        if found.end is not None:
            return
        found.end = SandboxEnd(cause, exit_code, self._now())
        for watcher in self._watchers:
            watcher.put_nowait(sandbox)

    def kill_monitor(self, sandbox: SandboxId, *, seen: bool = True) -> None:
        """Let the sandbox's monitor die, which ends the sandbox. Unless ``seen``, ``exits`` does not report it."""
        if seen:
            self.end(sandbox, EndCause.MONITOR_LOST, None)
        elif (found := self.known[sandbox]).end is None:
            found.end = SandboxEnd(EndCause.MONITOR_LOST, None, self._now())

    def lose(self, sandbox: SandboxId) -> None:
        """Remove the sandbox without a trace."""
        del self.known[sandbox]

    def leave_half_made(self, sandbox: SandboxId) -> None:
        """Let the sandbox look as if its start had been cut off."""
        self.known[sandbox].half_made = True

    def restart_host(self) -> None:
        """Let the machine restart, which ends every sandbox."""
        for sandbox in self.known:
            self.end(sandbox, EndCause.HOST_RESTARTED, None)

    # The port

    async def prepare(self, progress: Progress) -> None:
        self._called("prepare", "")
        progress("preparing nothing")
        self.ready = True

    def readiness(self) -> Readiness:
        return Readiness(self.ready, "ready" if self.ready else "waiting to be prepared")

    def supports(self, isolation: Isolation) -> str | None:
        return self.unsupported.get(isolation)

    def capacity(self) -> Capacity:
        return self.has

    async def use(self) -> MachineUse:
        return MachineUse(self.has, 0.5, 1.5, 2.5, self.has.disk, self.disks_left)

    @property
    def base_id(self) -> str:
        return "fake-base"

    @property
    def gateway(self) -> str:
        return "10.0.0.1"

    @property
    def further_address(self) -> str:
        return ""

    def next_hop(self, ip: str) -> str:
        return ""

    async def members(self) -> Sequence[MemberReport]:
        return list(self.cluster)

    async def disk_members(self) -> Mapping[DiskId, str]:
        return dict.fromkeys(self.known_disks, self.member) if self.cluster else {}

    async def move_disk(self, disk: DiskId) -> str:
        self._called("move_disk", disk)
        self._refuse_while_used(disk)
        self.leaving.discard(disk)
        return self.member

    def write_off(self, disk: DiskId) -> None:
        """Let the disk be gone, and its sandbox end with its machine."""
        self.known_disks.pop(disk, None)
        for sandbox, found in self.known.items():
            if found.spec.disk == disk:
                self.end(sandbox, EndCause.HOST_RESTARTED, None)

    async def collect_layers(self, keys: Collection[str], unused_seconds: float) -> Sequence[str]:
        return (await self.collect(set(self.known_layers) - set(keys), unused_seconds)).layers

    async def collect(self, keep: Collection[str], unused_seconds: float) -> Collected:
        self._called("collect", "")
        used = {sandbox.spec.layer_key for sandbox in self.known.values() if sandbox.end is None}
        latest = self._now() - timedelta(seconds=unused_seconds)
        unused = [key for key in self.known_layers if self._layer_used.get(key, latest) <= latest]
        gone = [key for key in unused if key not in used and key not in keep]
        for key in gone:
            del self.known_layers[key]
        return Collected(gone, [], 0)

    def is_busy(self) -> bool:
        return self.busy

    def is_tight(self) -> bool:
        return self.tight

    def reserve_disk(self, disk: DiskId, size_bytes: int) -> None:
        self._called("reserve_disk", disk)

    async def create_disk(self, disk: DiskId, size_bytes: int) -> None:
        self._called("create_disk", disk)
        self.known_disks.setdefault(disk, FakeDisk(size_bytes)).size_bytes = size_bytes

    async def disk(self, disk: DiskId) -> DiskReport | None:
        self._called("disk", disk)
        found = self.known_disks.get(disk)
        if found is None:
            return None
        leaving = disk in self.leaving
        return DiskReport(disk, found.bundle_hash, found.size_bytes, found.build_key, leaving)

    async def put_bundle(
        self, disk: DiskId, bundle: Bundle, replaced: Bundle | None = None, build_key: str = ""
    ) -> None:
        self._called("put_bundle", disk)
        self._refuse_while_used(disk)
        found = self._disk(disk)
        before = replaced if replaced and replaced.hash == found.bundle_hash else Bundle("", ())
        if build_key and build_key not in self.known_layers:
            raise NotFound(f"There is no layer {build_key}.")
        written, removed = changes(before, bundle)
        for path in (*removed, *found.built):
            found.files.pop(path, None)
        changed = {file.path for file in written}
        restored = [file for file in bundle.files if file.path in found.built and file.path not in changed]
        found.files.update({file.path: file.content for file in (*written, *restored)})
        found.built, found.build_key = self.built.get(build_key, {}), build_key
        found.files.update(found.built)
        found.bundle_hash = bundle.hash

    async def mark_bundle(self, disk: DiskId, bundle_hash: str) -> None:
        self._called("mark_bundle", disk)
        self._disk(disk).bundle_hash = bundle_hash

    async def clone_disk(self, source: DiskId, target: DiskId, size_bytes: int, *, for_backup: bool = False) -> None:
        self._called("clone_disk", source)
        found = self._disk(source)
        copy = FakeDisk(size_bytes, dict(found.files), found.bundle_hash, dict(found.built), found.build_key)
        self.known_disks.setdefault(target, copy)

    async def delete_disk(self, disk: DiskId) -> None:
        self._called("delete_disk", disk)
        self._refuse_while_used(disk)
        self.known_disks.pop(disk, None)

    def _refuse_while_used(self, disk: DiskId, process: str | None = None) -> None:
        users = [one for one in self.known.values() if one.spec.disk == disk and one.end is None]
        if any(process in (None, one.spec.process) for one in users):
            raise InvalidState(f"A sandbox runs on the disk {disk}: stop it first.")

    async def run_tool(self, tool: Tool, output: Progress) -> ToolExit:
        self._called("run_tool", tool.argv[0])
        if tool.disk is not None:
            self._disk(tool.disk)
            if tool.writable:
                self._refuse_while_used(tool.disk)
        if tool.argv[0] == "echo":
            output(" ".join(tool.argv[1:]))
        return ToolExit(1 if tool.argv[0] == "false" else 0)

    async def start(self, spec: SandboxSpec) -> SandboxReport:
        self._called("start", spec.id)
        known = self.known.get(spec.id)
        if known and not known.half_made:
            return known.report()
        self._disk(spec.disk)
        if known is None:
            self._refuse_while_used(spec.disk, spec.process)
        if spec.layer_key is not None and spec.layer_key not in self.known_layers:
            raise NotFound(f"There is no layer {spec.layer_key}.")
        if refusal := self.supports(spec.isolation):
            raise EngineUnavailable(refusal)
        behaviour = self._next_behaviour(spec.entrypoint)
        sandbox = FakeSandbox(spec, behaviour, self._next_address(), self._now(), member=self.member)
        self.known[spec.id] = sandbox
        self.known_logs[spec.id] = (spec.builder_id, [])
        self.print(spec.id, *sandbox.behaviour.lines)
        return sandbox.report()

    def _next_behaviour(self, entrypoint: str) -> Behaviour:
        script = self._behaviours.get(entrypoint)
        if not script:
            return Behaviour()
        return script.popleft() if len(script) > 1 else script[0]

    def _next_address(self) -> str:
        self._addresses += 1
        return f"10.0.{self._addresses // 250}.{self._addresses % 250 + 2}"

    async def report(self, sandbox: SandboxId) -> SandboxReport:
        self._called("report", sandbox)
        found = self._look(sandbox)
        return found.report() if found else absent_report(sandbox)

    async def list_sandboxes(self) -> Sequence[SandboxReport]:
        self._called("list_sandboxes", "")
        return [found.report() for sandbox in list(self.known) if (found := self._look(sandbox))]

    async def listening(self, sandbox: SandboxId, port: int) -> Listening:
        self._called("listening", sandbox)
        found = self._look(sandbox)
        if found is None or found.end or found.half_made:
            return Listening(frozenset())
        does = found.behaviour
        if does.listens_at is None or found.looks < does.listens_at:
            return Listening(frozenset())
        sockets = does.sockets or ((does.address, does.port or found.spec.port),)
        # Connections to the sandbox's address reach loopback, as on this machine's engine.
        if {("127.0.0.1", port), ("0.0.0.0", port)} & set(sockets):
            return Listening(frozenset({("0.0.0.0", port)}))
        return Listening(frozenset(sockets))

    def _look(self, sandbox: SandboxId) -> FakeSandbox | None:
        found = self.known.get(sandbox)
        if found is None:
            return None
        found.looks += 1
        does = found.behaviour
        if does.exits_at is not None and found.looks >= does.exits_at and not found.half_made:
            self.end(sandbox, EndCause.OUT_OF_MEMORY if does.out_of_memory else EndCause.EXITED, does.exit_code)
        return found

    async def freeze(self, sandbox: SandboxId) -> SandboxReport:
        self._called("freeze", sandbox)
        if (found := self._alive(sandbox)) and not found.frozen:
            found.frozen, found.frozen_at = True, self._now()
        return await self._reported(sandbox)

    async def thaw(self, sandbox: SandboxId) -> SandboxReport:
        self._called("thaw", sandbox)
        self._thaw(sandbox)
        return await self._reported(sandbox)

    def _thaw(self, sandbox: SandboxId) -> None:
        if (found := self._alive(sandbox)) and found.frozen:
            found.frozen, found.thawed_at = False, self._now()

    def _alive(self, sandbox: SandboxId) -> FakeSandbox | None:
        found = self.known.get(sandbox)
        return None if found is None or found.end or found.half_made else found

    async def _reported(self, sandbox: SandboxId) -> SandboxReport:
        found = self.known.get(sandbox)
        return found.report() if found else absent_report(sandbox)

    async def stop(self, sandbox: SandboxId, grace_seconds: float) -> SandboxReport:
        self._called("stop", sandbox)
        found = self.known.get(sandbox)
        if found is None:
            return absent_report(sandbox)
        self._thaw(sandbox)
        self.end(sandbox, EndCause.STOPPED, TERMINATED_EXIT_CODE)
        return found.report()

    async def remove(self, sandbox: SandboxId) -> None:
        self._called("remove", sandbox)
        found = self.known.get(sandbox)
        if found and not found.end and not found.half_made:
            raise InvalidState(f"The sandbox {sandbox} runs: stop it first.")
        self.known.pop(sandbox, None)

    async def exits(self) -> AsyncIterator[SandboxId]:
        watcher: asyncio.Queue[SandboxId] = asyncio.Queue()
        self._watchers.add(watcher)
        try:
            while True:
                yield await watcher.get()
        finally:
            self._watchers.discard(watcher)

    @asynccontextmanager
    async def open_process(self, sandbox: SandboxId, spec: ProcessSpec) -> AsyncIterator[Process]:
        self._called("open_process", sandbox)
        if self._alive(sandbox) is None:
            raise InvalidState("The sandbox does not run.")
        self._thaw(sandbox)
        self.processes.append(spec)
        command = spec.argv[2] if spec.argv[:2] == ("/bin/sh", "-c") else shlex.join(spec.argv)
        answer = self._answers.get(command, Answer())
        if answer.no_folder:
            raise ValidationFailed({"cwd": [f"there is no folder {spec.folder} in the sandbox"]})
        process = FakeProcess(answer, spec)
        try:
            yield process
        finally:
            await process.kill()

    async def usage(self, sandbox: SandboxId) -> SandboxUsage | None:
        self._called("usage", sandbox)
        found = self._alive(sandbox)
        if found is None:
            return None
        disk = self.known_disks.get(found.spec.disk)
        used = sum(len(content) for content in disk.files.values()) if disk else 0
        return SandboxUsage(found.cpu_seconds, 20_000_000, used, 1_000, 2_000, 2)

    async def usages(self, sandboxes: Collection[SandboxId]) -> Mapping[SandboxId, SandboxUsage | Exception]:
        return await read_each(self.usage, sandboxes)

    async def close(self) -> None:
        self.ready = False

    async def down(self) -> None:
        self._called("down", "")
        for sandbox in list(self.known):
            self.end(sandbox, EndCause.STOPPED, TERMINATED_EXIT_CODE)
        self.ready = False
