"""The memory budget of a tenant: what waits for it, and what need not."""

from __future__ import annotations

import asyncio

from builderd.domain.ids import TenantId
from builderd.services.executions import HeldBytes

ACME, OTHER = TenantId("acme"), TenantId("other")


async def test_bytes_are_counted_until_they_are_given_back() -> None:
    held = HeldBytes(10)
    with held.holding(ACME) as first, held.holding(ACME) as second:
        await first.take(4)
        await second.take(5)
        first.release(1)
        assert held.held(ACME) == 8
        assert held.held(OTHER) == 0
    assert held.held(ACME) == 0


async def test_one_call_may_exceed_the_budget_and_the_next_waits_for_it() -> None:
    held = HeldBytes(10)
    with held.holding(ACME) as second:
        with held.holding(ACME) as first:
            await first.take(8)
            await first.take(100)
            assert not second.try_reserve(1)
            taking = asyncio.create_task(second.take(1))
            done, _ = await asyncio.wait({taking}, timeout=0.05)
            assert not done
        await taking
        assert held.held(ACME) == 1


async def test_calls_that_all_need_more_than_there_is_come_to_an_end_one_after_the_other() -> None:
    held = HeldBytes(10)
    most = 0

    async def call() -> None:
        nonlocal most
        with held.holding(ACME) as holding:
            for _ in range(4):
                await holding.take(2)
                most = max(most, held.held(ACME))
                await asyncio.sleep(0)

    await asyncio.gather(*(call() for _ in range(20)))
    assert 10 < most <= 18


async def test_other_tenants_have_budgets_of_their_own() -> None:
    held = HeldBytes(10)
    with held.holding(ACME) as first, held.holding(OTHER) as other:
        await first.take(20)
        assert other.try_reserve(10)
