"""The limits of concurrent work on backups."""

from __future__ import annotations

import asyncio

from tests.unit.reconciler.backups.conftest import Scene

from builderd.domain.ids import TenantId


async def test_drills_of_one_tenant_do_not_keep_those_of_others_waiting(scene: Scene) -> None:
    context, entered = scene.schedule.context, asyncio.Queue[str]()

    async def drill(tenant: str) -> None:
        async with context.drill(TenantId(tenant)):
            entered.put_nowait(tenant)
            await asyncio.Event().wait()

    drills = [asyncio.create_task(drill(tenant)) for tenant in ("culprit", "culprit", "culprit", "victim")]
    async with asyncio.timeout(5):
        assert [await entered.get(), await entered.get()] == ["culprit", "victim"]
    for one in drills:
        one.cancel()
    await asyncio.gather(*drills, return_exceptions=True)
