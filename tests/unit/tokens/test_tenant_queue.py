"""Concurrency limits of tenants: who works, who waits, and who is refused."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from builderd.core.errors import RateLimited
from builderd.core.ids import TenantId
from builderd.tokens import limits
from builderd.tokens.limits import TenantQueue, releasing

ACME, OTHER = TenantId("acme"), TenantId("other")


async def test_a_tenant_waits_for_itself_alone() -> None:
    limit, order = TenantQueue(1, "reads"), list[TenantId]()
    async with limit.one(ACME):
        waiting = asyncio.create_task(_work(limit, ACME, order))
        await _work(limit, OTHER, order)
    await waiting
    assert order == [OTHER, ACME]


async def _work(limit: TenantQueue, tenant: TenantId, order: list[TenantId]) -> None:
    async with limit.one(tenant):
        order.append(tenant)


async def test_more_than_may_wait_are_refused_and_nothing_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_WAITING", 1)
    limit, order = TenantQueue(1, "reads"), list[TenantId]()
    async with limit.one(ACME):
        waiting = asyncio.create_task(_work(limit, ACME, order))
        await asyncio.sleep(0)
        with pytest.raises(RateLimited, match="2 reads of yours"):
            await _work(limit, ACME, order)
    await waiting
    assert not limit._calls
    assert not limit._semaphores


async def test_content_that_has_not_arrived_keeps_no_place() -> None:
    limit, arrived = TenantQueue(1, "files"), asyncio.Event()

    async def content() -> AsyncIterator[bytes]:
        yield b"a"
        await arrived.wait()
        yield b"b"

    async def read(content: AsyncIterator[bytes]) -> bytes:
        async with limit.admitted(ACME) as place, place:
            return b"".join([piece async for piece in releasing(content, place)])

    slow = asyncio.create_task(read(content()))
    await asyncio.sleep(0)
    async with asyncio.timeout(10), limit.one(ACME):
        arrived.set()
        await asyncio.sleep(0.01)
        assert not slow.done()
    assert await slow == b"ab"
