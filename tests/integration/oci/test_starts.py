"""A start waits for the store without keeping others waiting."""

from __future__ import annotations

import asyncio

import pytest
from tests.contract.engine import apps
from tests.engines import ENGINE_TIMEOUT, execute, make_spec

from builderd.adapters.engines.oci.engine.engine import OciEngine
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
