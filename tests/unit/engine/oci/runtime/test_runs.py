"""Sandboxes whose groups are files: what stands still and goes on when, and what of them outlives a fault."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import subprocess
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Network
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from builderd.core.ids import DiskId, SandboxId
from builderd.core.resources import GB
from builderd.engine.oci.engine.engine import OciEngine
from builderd.engine.oci.engine.machine import Machine
from builderd.engine.oci.network.allocations import Addresses, Slots
from builderd.engine.oci.runtime.cgroups import Cgroups
from builderd.engine.oci.runtime.launching import Runtime
from builderd.engine.oci.runtime.records import Heartbeat, Record, Records
from builderd.engine.oci.runtime.run import Root, Run, RunContext
from builderd.engine.oci.runtime.runs import Runs
from builderd.engine.port import EngineOptions
from builderd.linux.processes import boot_id, find_process
from builderd.sandboxes.model import SandboxState

APP = SandboxId("a1")
DISK, ONE, TWO = DiskId("disk"), DiskId("one"), DiskId("two")


def make_record(name: str = APP, **changes: Any) -> Record:
    """Make the record of an app that runs: this process is its first process, and its first process its shim."""
    record = Record(name, "builder", DISK, "crun", slot=0, ip="10.64.8.2", port=80, boot=boot_id())
    process = changes.pop("process", find_process(os.getpid()))
    return replace(record, **{"process": process, "shim": process, "started_at": 1.0, **changes})


def make_run() -> Run:
    runtime, nothing = Runtime("crun", "/usr/bin/crun", Path("/nowhere")), Path("/nowhere")
    fields: dict[str, Any] = {
        **dict.fromkeys(["cpu", "memory_bytes", "pids", "log_limit", "user", "port"], 1),
        **dict.fromkeys(["owner", "disk", "hostname", "cwd"], "x"),
    }
    return Run(APP, runtime=runtime, root=Root((nothing,)), argv=(), env={}, egress=True, log=nothing, **fields)


class Host:
    """State of a machine that a service finds; ``begin`` makes one of it. Control groups are folders, version 1."""

    def __init__(self, folder: Path) -> None:
        self.data = folder / "data"
        self.run = folder / "run"
        self.groups = folder / "cgroup"
        self.data.mkdir()
        self.run.mkdir()
        self.records = Records(self.data)
        self.records.open()
        self.cgroups = Cgroups("test", self.groups)
        self.heartbeat = Heartbeat(self.data / "heartbeat", boot_id(), self.records.now)
        self.slots = Slots((0,), tuple)
        self.network = SimpleNamespace(
            addresses=Addresses(IPv4Network("10.64.8.0/21")),
            forget=lambda _, **__: None,
            share_ports=lambda _: None,
        )
        self.launcher = SimpleNamespace()
        self.runtimes: dict[str, Runtime] = {}

    def add(self, record: Record) -> Record:
        self.records.save(record)
        freezer = self.groups / f"freezer/builderd-test/{record.id}"
        freezer.mkdir(parents=True)
        (freezer / "freezer.state").write_text("THAWED")
        return record

    def begin(self) -> Runs:
        network, launcher = cast("Any", self.network), cast("Any", self.launcher)
        parts = (self.records, launcher, self.cgroups, network, self.slots, self.runtimes, self.heartbeat)
        return Runs(RunContext(self.run, self.run / "store", {}, {}, *parts))

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[Runs]:
        runs = self.begin()
        await runs.open()
        try:
            yield runs
        finally:
            runs.close()


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


@dataclass
class Copies:
    """Stands for the disks. A copy takes until it may end; whether the app stood still until then."""

    cgroups: Cgroups
    may_end: dict[str, threading.Event] = field(
        default_factory=lambda: {ONE: threading.Event(), TWO: threading.Event()}
    )
    begun: list[str] = field(default_factory=list)
    stood_still: dict[str, bool] = field(default_factory=dict)

    def write_out(self, disk: DiskId) -> None: ...

    def clone(self, source: DiskId, target: DiskId, size_bytes: int, *, for_backup: bool = False) -> None:
        self.begun.append(target)
        self.may_end[target].wait(5)
        self.stood_still[target] = self.cgroups.is_frozen(APP)

    async def until_begun(self, target: DiskId) -> None:
        async with asyncio.timeout(5):
            while target not in self.begun:
                await asyncio.sleep(0.001)


@asynccontextmanager
async def running(host: Host) -> AsyncIterator[tuple[OciEngine, Copies]]:
    """An engine with one app that runs."""
    host.add(make_record())
    async with host.opened() as runs:
        engine, copies = OciEngine(EngineOptions(host.data, inside_port=8080)), Copies(host.cgroups)
        engine._machine = cast("Machine", SimpleNamespace(runs=runs, disks=copies, store=None))
        yield engine, copies
        assert runs.freezing.is_idle, "nothing is remembered of what is over"


async def test_end_of_a_dying_sandbox_is_read_after_its_exit_file(host: Host) -> None:
    async with running(host) as (engine, _):
        assert (await engine.sandboxes.report(APP)).state is SandboxState.RUNNING
        with subprocess.Popen(["sleep", "60"]) as child:
            dying = find_process(child.pid)
            child.kill()
        engine._here.runs.save(make_record(process=dying, shim=find_process(os.getpid())))
        reporting = asyncio.create_task(engine.sandboxes.report(APP))
        await asyncio.sleep(0.05)
        (host.records.exits / APP).write_text("3")
        report = await reporting
        assert (report.state, report.end and report.end.exit_code) == (SandboxState.EXITED, 3)


async def test_freeze_during_a_copy_is_kept(host: Host) -> None:
    async with running(host) as (engine, copies):
        copying = asyncio.create_task(engine.disks.clone_disk(DISK, ONE, GB))
        await copies.until_begun(ONE)
        freezing = asyncio.create_task(engine.sandboxes.freeze(APP))
        await asyncio.sleep(0.05)
        copies.may_end[ONE].set()
        await copying
        assert (await freezing).state is SandboxState.FROZEN
        assert host.cgroups.is_frozen(APP)


async def test_a_thaw_undoes_the_freeze_that_is_on_its_way(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    may_freeze, freeze = threading.Event(), host.cgroups.freeze

    def freeze_slowly(name: str) -> None:
        may_freeze.wait(5)
        freeze(name)

    monkeypatch.setattr(host.cgroups, "freeze", freeze_slowly)
    async with running(host) as (engine, _):
        freezing = asyncio.create_task(engine.sandboxes.freeze(APP))
        await asyncio.sleep(0.05)
        thawing = asyncio.create_task(engine.sandboxes.thaw(APP))
        await asyncio.sleep(0.05)
        may_freeze.set()
        await freezing
        assert (await thawing).state is SandboxState.RUNNING
        assert not host.cgroups.is_frozen(APP)


async def test_cancelled_copy_thaws_the_sandbox(host: Host) -> None:
    async with running(host) as (engine, copies):
        copying = asyncio.create_task(engine.disks.clone_disk(DISK, ONE, GB))
        await copies.until_begun(ONE)
        copying.cancel()
        await asyncio.sleep(0.05)
        assert host.cgroups.is_frozen(APP)
        copies.may_end[ONE].set()
        with pytest.raises(asyncio.CancelledError):
            await copying
        assert copies.stood_still == {ONE: True}
        assert not host.cgroups.is_frozen(APP)


@pytest.mark.parametrize("after", [False, True], ids=["before-it-is-there", "when-it-is-there"])
async def test_slot_is_released_if_the_record_cannot_be_written(
    host: Host, monkeypatch: pytest.MonkeyPatch, *, after: bool
) -> None:
    save = host.records.save

    def fail(record: Record) -> None:
        host.records.folder(record.id).mkdir()
        if after:
            save(record)
        raise OSError(errno.ENOSPC, "full")

    async with host.opened() as runs:
        monkeypatch.setattr(host.records, "save", fail)
        with pytest.raises(OSError, match="full"):
            await runs.start(make_run())
        assert not host.records.folder(APP).exists()
        assert runs.find(APP) is None
        assert len({host.slots.take(f"{number:x}") for number in range(256)}) == 256


async def test_a_build_that_cannot_be_killed_keeps_no_service_from_starting(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(name: str) -> None:
        if name == stuck.id:
            raise TimeoutError("processes {1} do not die")

    process = subprocess.Popen(["sleep", "1000"])
    stuck = host.add(make_record("b1", owner="", disk="", slot=1, process=find_process(process.pid)))
    ended = host.add(make_record("b2", owner="", disk="", slot=2, process=None))
    app = host.add(make_record())
    monkeypatch.setattr(host.cgroups, "kill", fail)
    async with host.opened() as runs:
        assert runs.all() == [app, stuck]
        assert not host.records.folder(ended.id).exists()
        assert stuck.slot not in [host.slots.take(f"{number:x}") for number in range(200)]
    monkeypatch.undo()
    async with host.opened() as runs:
        assert runs.all() == [app] == list(host.records.all())
    assert process.wait() == -signal.SIGKILL
