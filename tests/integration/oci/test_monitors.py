"""A sandbox whose monitor (conmon) or another helper on the host was killed is noticed, and nothing of it is left."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from pathlib import Path

import pytest
from tests.contract.engine import apps
from tests.contract.engine.apps import App
from tests.engines import (
    ENGINE_TIMEOUT,
    execute,
    kill_monitor,
    make_spec,
    prepared,
    processes_of,
    until_listening,
    until_state,
)

from builderd.core.errors import EngineUnavailable
from builderd.core.ids import DiskId, SandboxId
from builderd.core.resources import GB
from builderd.engine.oci.engine.engine import OciEngine
from builderd.engine.oci.storage.layers import BuildRun
from builderd.engine.port import EngineOptions
from builderd.executions.model import ProcessSpec, shell
from builderd.sandboxes.model import EndCause, SandboxReport, SandboxState
from builderd.versions.model import Isolation

pytestmark = pytest.mark.root

#: A process of the app's that has left its session prints as well.
PRINTING = App("setsid sh -c 'while :; do echo line; sleep 0.01; done' & exec sleep 1000", apps.SILENT.behaviour)
#: conmon watches gVisor as it does crun.
BOTH = pytest.mark.parametrize(
    "isolation", [Isolation.STANDARD, pytest.param(Isolation.STRONG, marks=pytest.mark.slow)]
)


async def until_lost(engine: OciEngine, sandbox: SandboxId) -> SandboxReport:
    """Return its end, with which nothing of it is left on the host."""
    report = await until_state(engine, sandbox, SandboxState.EXITED)
    assert report.end
    assert (report.end.cause, report.end.exit_code) == (EndCause.MONITOR_LOST, None)
    async with asyncio.timeout(ENGINE_TIMEOUT):
        while processes_of(sandbox):
            await asyncio.sleep(0.01)
    return report


@BOTH
async def test_a_visitor_of_an_app_that_was_ended_does_not_wait(engine: OciEngine, isolation: Isolation) -> None:
    spec = await make_spec(engine, apps.SERVER, isolation=isolation)
    report = await engine.sandboxes.start(spec)
    await until_listening(engine, spec.id)
    reader, writer = await asyncio.open_connection(report.ip, apps.PORT)
    await kill_monitor(engine, spec.id)
    await until_lost(engine, spec.id)
    await engine.sandboxes.remove(spec.id)
    with contextlib.suppress(ConnectionError):
        assert await asyncio.wait_for(reader.read(), ENGINE_TIMEOUT) == b""
    writer.close()


@BOTH
async def test_a_monitor_that_died_while_no_service_ran_is_noticed_at_the_start(
    settings: EngineOptions, isolation: Isolation
) -> None:
    async with prepared(settings) as engine:
        silent = await make_spec(engine, apps.SILENT, isolation=isolation)
        printing = await make_spec(engine, PRINTING, isolation=isolation)
        for spec in (silent, printing):
            await engine.sandboxes.start(spec)
        frozen = await make_spec(engine, apps.SILENT, isolation=isolation)
        await engine.sandboxes.start(frozen)
        await engine.sandboxes.freeze(frozen.id)
        shims = [engine._here.runs.find(spec.id).shim for spec in (silent, printing, frozen)]  # type: ignore[union-attr]
        await engine.close()
        for shim in shims:
            assert shim
            shim.kill()
        await engine.prepare(lambda line: None)
        for spec in (silent, printing, frozen):
            assert (await engine.sandboxes.report(spec.id)).state is SandboxState.EXITED, (
                "at once, before anybody is told it runs"
            )
            await until_lost(engine, spec.id)


@BOTH
async def test_a_command_beside_an_app_whose_monitor_dies_ends_with_it(engine: OciEngine, isolation: Isolation) -> None:
    spec = await make_spec(engine, apps.SILENT, isolation=isolation)
    await engine.sandboxes.start(spec)
    async with engine.sandboxes.open_process(spec.id, ProcessSpec(shell("echo begun; sleep 1000"))) as process:
        assert await process.read() == b"begun\n"
        await kill_monitor(engine, spec.id)
        assert await asyncio.wait_for(process.wait(), ENGINE_TIMEOUT) != 0
    await until_lost(engine, spec.id)


@BOTH
async def test_a_frozen_sandbox_whose_monitor_dies_ends(engine: OciEngine, isolation: Isolation) -> None:
    spec = await make_spec(engine, apps.SERVER, isolation=isolation)
    await engine.sandboxes.start(spec)
    await engine.sandboxes.freeze(spec.id)
    await kill_monitor(engine, spec.id)
    report = await until_lost(engine, spec.id)
    assert report.frozen_at
    assert (await engine.sandboxes.thaw(spec.id)).state is SandboxState.EXITED


async def test_a_monitor_that_dies_while_the_disk_is_copied_or_frozen_is_noticed(engine: OciEngine) -> None:
    for number, work in enumerate(("copy", "freeze")):
        spec = await make_spec(engine, PRINTING)
        await engine.sandboxes.start(spec)
        await asyncio.sleep(0.05)
        target = DiskId(f"copy-without-monitor-{number}")
        working = engine.disks.clone_disk(spec.disk, target, GB) if work == "copy" else engine.sandboxes.freeze(spec.id)
        task = asyncio.ensure_future(working)
        await asyncio.sleep(0)
        await kill_monitor(engine, spec.id)
        await asyncio.wait({task}, timeout=ENGINE_TIMEOUT)
        assert not isinstance(task.exception(), TimeoutError)
        await until_lost(engine, spec.id)
        await engine.disks.delete_disk(target)


async def test_a_monitor_that_dies_while_the_app_is_stopped_changes_nothing(engine: OciEngine) -> None:
    deaf = App("trap '' TERM; while :; do sleep 0.1; done", apps.SILENT.behaviour)
    spec = await make_spec(engine, deaf)
    await engine.sandboxes.start(spec)
    stopping = asyncio.ensure_future(engine.sandboxes.stop(spec.id, ENGINE_TIMEOUT * 10))
    await asyncio.sleep(0.1)
    await kill_monitor(engine, spec.id)
    report = await asyncio.wait_for(stopping, ENGINE_TIMEOUT)
    assert report.end
    assert (report.state, report.end.cause) == (SandboxState.EXITED, EndCause.STOPPED)


async def test_a_build_whose_monitor_dies_is_the_machine_s_fault(engine: OciEngine) -> None:
    runs, lines = engine._here.runs, list[str]()
    run = BuildRun(
        id="b00d",
        argv=("/bin/sh", "-c", "while :; do echo line; sleep 0.01; done"),
        env={},
        cwd="/",
        binds=(),
        network=False,
        timeout_seconds=1000,
    )
    building = asyncio.ensure_future(engine._here.layers._runner.run_build(run, lines.append))
    async with asyncio.timeout(ENGINE_TIMEOUT):
        while not lines:
            await asyncio.sleep(0.01)
    record = runs.find("b00d")
    assert record
    assert record.shim
    record.shim.kill()
    with pytest.raises(EngineUnavailable, match="conmon"):
        await asyncio.wait_for(building, ENGINE_TIMEOUT)
    assert not processes_of(SandboxId("b00d"))
    assert runs.find("b00d") is None


def kill_launcher(engine: OciEngine) -> None:
    launcher = engine._here.launcher._process
    assert launcher
    launcher.kill()


def runtime_commands(sandbox: str) -> list[int]:
    """Process ids of ``crun exec`` or ``runsc exec`` on the host."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"exec" in words and sandbox.encode() in words:
            found.append(int(folder.name))
    return found


@BOTH
@pytest.mark.parametrize("killed", ["runtime command", "launcher"])
async def test_a_command_that_lost_what_runs_it_is_cut_off_and_leaves_nothing(
    engine: OciEngine, isolation: Isolation, killed: str
) -> None:
    spec = await make_spec(engine, apps.SILENT, isolation=isolation)
    await engine.sandboxes.start(spec)
    async with engine.sandboxes.open_process(spec.id, ProcessSpec(shell("echo begun; exec sleep 1000"))) as process:
        assert (await process.read()).strip() == b"begun"
        if killed == "launcher":
            kill_launcher(engine)
        else:
            commands = runtime_commands(spec.id)
            assert commands
            for command in commands:
                os.kill(command, signal.SIGKILL)
        with pytest.raises(EngineUnavailable):
            await asyncio.wait_for(process.wait(), ENGINE_TIMEOUT)
    # The app itself is the one that sleeps still; a zombie is gone but for its name. What goes while cat reads is gone.
    count = "cat /proc/[0-9]*/stat 2>/dev/null | grep -c '(sleep) [^Z]'"
    assert (await execute(engine, spec.id, count, ENGINE_TIMEOUT, 1000)).output == "1\n"
    async with asyncio.timeout(ENGINE_TIMEOUT):
        while runtime_commands(spec.id):
            await asyncio.sleep(0.01)


async def test_the_next_start_has_a_launcher_again(engine: OciEngine) -> None:
    first = await make_spec(engine, apps.SILENT)
    await engine.sandboxes.start(first)
    kill_launcher(engine)
    second = await make_spec(engine, apps.SILENT)
    async with asyncio.timeout(ENGINE_TIMEOUT):
        while True:
            try:
                report = await engine.sandboxes.start(second)
                break
            except EngineUnavailable:  # it was asked before its end was seen
                await asyncio.sleep(0.01)
    assert report.state is SandboxState.RUNNING
    assert (await engine.sandboxes.report(first.id)).state is SandboxState.RUNNING
