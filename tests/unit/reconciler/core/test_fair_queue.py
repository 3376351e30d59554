"""Fair queue: whose turn it is."""

from __future__ import annotations

import asyncio

from builderd.domain.ids import TenantId
from builderd.reconciler.core.loops import FairQueue

ACME, OTHER = TenantId("acme"), TenantId("other")


async def test_tenants_take_turns_and_none_has_more_than_its_share() -> None:
    queue: FairQueue[str] = FairQueue(3)
    assert [queue.put(ACME, f"a{number}") for number in range(5)] == [True, True, True, False, False]
    assert [queue.put(OTHER, f"b{number}") for number in range(2)] == [True, True]
    assert [await queue.get() for _ in range(5)] == ["a0", "b0", "a1", "b1", "a2"]


async def test_a_tenant_that_comes_later_is_next() -> None:
    queue: FairQueue[str] = FairQueue(3)
    for item in ("a0", "a1"):
        queue.put(ACME, item)
    assert await queue.get() == "a0"
    queue.put(OTHER, "b0")
    assert queue.put(ACME, "a2")
    assert [await queue.get() for _ in range(3)] == ["a1", "b0", "a2"]


async def test_an_empty_queue_waits() -> None:
    queue: FairQueue[str] = FairQueue(1)
    getting = asyncio.create_task(queue.get())
    await asyncio.sleep(0)
    assert queue.put(ACME, "a")
    async with asyncio.timeout(10):
        assert await getting == "a"
