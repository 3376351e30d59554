"""Helper processes on the host are killed: their work fails with a report and leaves nothing."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest
from tests.contract.engine import apps
from tests.engines import ENGINE_TIMEOUT, execute, make_spec

from builderd.adapters.engines.oci.engine.engine import OciEngine
from builderd.domain.errors import EngineUnavailable
from builderd.domain.processes import ProcessSpec, shell
from builderd.domain.sandboxes import SandboxState
from builderd.domain.versions import Isolation

pytestmark = pytest.mark.root

BOTH = pytest.mark.parametrize("isolation", list(Isolation))


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
