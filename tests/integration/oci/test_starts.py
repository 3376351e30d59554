"""A start waits for the store without keeping others waiting, and nothing that it runs can write to the runtime."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest
from tests.contract.engine import apps
from tests.engines import ENGINE_TIMEOUT, execute, make_spec

from builderd.adapters.engines.oci.engine.engine import OciEngine
from builderd.adapters.engines.oci.runtime.launching import Program
from builderd.domain.sandboxes import SandboxState

pytestmark = pytest.mark.root


async def test_start_waiting_for_the_store_does_not_block_others(engine: OciEngine) -> None:
    spec = await make_spec(engine, apps.SILENT)
    with engine._here.disks._scratch_lock:
        start = asyncio.create_task(engine.sandboxes.start(spec))
        await asyncio.sleep(0.1)
        start.cancel()
        again = asyncio.create_task(engine.sandboxes.start(spec))
        await asyncio.sleep(0.1)
        assert not start.done(), "it would take away what the next start makes"
    with pytest.raises(asyncio.CancelledError):
        await start
    assert (await again).state is SandboxState.RUNNING
    assert (await execute(engine, spec.id, "touch /var/tmp/x", ENGINE_TIMEOUT, 100)).exit_code == 0


async def test_nothing_that_the_launcher_runs_can_write_to_the_runtime(engine: OciEngine) -> None:
    crun = engine._here.runtimes["crun"]
    for command in (f"chmod 0755 {crun.path}", f"chmod 0755 /proc/self/root{crun.path}"):
        read, write = os.pipe()
        ended = await engine._here.launcher.run(Program(["/bin/sh", "-c", command]), {2: write})
        with os.fdopen(read) as errors:
            assert "Read-only file system" in errors.read()
        assert ended.status
    spec = await make_spec(engine, apps.SILENT)
    await engine.sandboxes.start(spec)
    record = engine._here.runs.find(spec.id)
    assert record
    assert record.shim
    assert record.process
    mounts = [Path(f"/proc/{one.pid}/mountinfo").read_text() for one in (record.shim, record.process)]
    assert [f" {os.path.realpath(crun.path)} ro," in text for text in mounts] == [True, False]
    assert f" {crun.path} " not in Path("/proc/self/mountinfo").read_text(), "the host sees no such mount"
