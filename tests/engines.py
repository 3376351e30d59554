"""Driving an engine in tests: a real one on a data directory of its own, and what is asked of any."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.contract.engine.apps import PORT, App
from tests.fakes.engine import FakeEngine
from tests.patience import patience

from builderd.core.ids import BuilderId, DiskId, SandboxId, new_id, new_sandbox_id
from builderd.core.resources import GB, Resources
from builderd.engine.incus.engine import IncusEngine
from builderd.engine.incus.process import run_to_end
from builderd.engine.incus.reports import name_of
from builderd.engine.oci.engine.engine import OciEngine
from builderd.engine.port import Engine, EngineOptions, Progress, StoreOptions
from builderd.executions import service as executions
from builderd.executions.model import TIMEOUT_EXIT_CODE
from builderd.sandboxes.model import ExecResult, Listening, SandboxReport, SandboxSpec, SandboxState
from builderd.versions.model import Isolation


def settings_in(data_dir: Path, **changes: Any) -> EngineOptions:
    """Many small disks may be promised on the test machine's own."""
    return replace(EngineOptions(data_dir, inside_port=8080, store=StoreOptions(overcommit=100)), **changes)


@contextmanager
def settings_until_down(data_dir: Path) -> Iterator[EngineOptions]:
    """Settings of engines on this data directory; at the end all that they left on the host is removed."""
    settings = settings_in(data_dir)
    yield settings
    asyncio.run(OciEngine(settings).down())


class StrongEngine(OciEngine):
    """Runs every sandbox under gVisor."""

    async def prepare(self, progress: Progress) -> None:
        await super().prepare(progress)
        self._here.runtimes["standard"] = self._here.runtimes["strong"]


class RuncEngine(OciEngine):
    """Runs sandboxes as on a machine without crun."""

    async def prepare(self, progress: Progress) -> None:
        await super().prepare(progress)
        self._here.runtimes["standard"] = self._here.runtimes["runc"]


@asynccontextmanager
async def prepared(settings: EngineOptions, kind: type[OciEngine] = OciEngine) -> AsyncIterator[OciEngine]:
    """A real engine; at the end everything that runs in its data directory is removed, and it is closed."""
    engine = kind(settings)
    await engine.prepare(lambda line: None)
    try:
        yield engine
    finally:
        await engine.prepare(lambda line: None)
        for report in await engine.sandboxes.list_sandboxes():
            await engine.sandboxes.stop(report.id, 0)
            await engine.sandboxes.remove(report.id)
        await engine.close()


#: Against hanging only.
ENGINE_TIMEOUT = patience(30)


async def make_spec(engine: Engine, app: App, **changes: Any) -> SandboxSpec:
    """A spec for the app on a disk of its own."""
    builder = new_id()
    await engine.disks.create_disk(DiskId(builder), 1 * GB)
    spec = SandboxSpec(
        id=new_sandbox_id(),
        builder_id=BuilderId(builder),
        disk=DiskId(builder),
        hostname="contract",
        entrypoint=app.entrypoint,
        port=PORT,
        env={"PORT": str(PORT)},
        resources=Resources(cpu=1, memory=0.125, disk=1),
        isolation=Isolation.STANDARD,
    )
    return replace(spec, **changes)


async def until_state(engine: Engine, sandbox: SandboxId, state: SandboxState) -> SandboxReport:
    async with asyncio.timeout(ENGINE_TIMEOUT):
        while (report := await engine.sandboxes.report(sandbox)).state is not state:
            await asyncio.sleep(0.01)
    return report


async def until_listening(engine: Engine, sandbox: SandboxId, port: int = 8000) -> Listening:
    async with asyncio.timeout(ENGINE_TIMEOUT):
        while not (listening := await engine.sandboxes.listening(sandbox, port)).sockets:
            await asyncio.sleep(0.01)
    return listening


async def log_text(engine: Engine, sandbox: SandboxId) -> list[str]:
    page = await engine.logs.read_log(sandbox)
    return [line.text for line in page.lines]


async def execute(engine: Engine, sandbox: SandboxId, command: str, seconds: float, limit: int) -> ExecResult:
    """Run a command line to its end."""
    return await executions.capture(engine.sandboxes, sandbox, executions.Command(command, seconds), limit)


async def past_its_time(engine: Engine, sandbox: SandboxId, command: str) -> ExecResult:
    """Return the result of a command that prints and never ends; its time limit grows until it printed."""
    for seconds in (0.5, 5, ENGINE_TIMEOUT):
        result = await execute(engine, sandbox, command, seconds, 1000)
        assert result.exit_code == TIMEOUT_EXIT_CODE
        if result.output:
            break
    return result


async def kill_monitor(engine: Engine, sandbox: SandboxId) -> None:
    """Kill what keeps the sandbox's log and writes down its end, as the host's out-of-memory killer would."""
    if isinstance(engine, FakeEngine):
        engine.kill_monitor(sandbox)
        return
    if isinstance(engine, IncusEngine):
        here = engine._here
        await run_to_end(here.client, name_of(sandbox), ("pkill", "-KILL", "-f", "/opt/builderd/entry"))
        return
    assert isinstance(engine, OciEngine)
    record = engine._here.runs.find(sandbox)
    assert record
    assert record.shim
    os.kill(record.shim.pid, signal.SIGKILL)


def processes_of(sandbox: SandboxId) -> list[str]:
    """Command lines of the host's processes in its control groups."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if (
                sandbox in (folder / "cgroup").read_text()
                and "Z" not in (folder / "stat").read_text().split(")")[1][:3]
            ):
                found.append((folder / "cmdline").read_text(errors="replace").replace("\0", " "))
        except OSError:
            continue
    return found
