"""Ledger of any order of states and times: no second is billed twice or left out, and all sums agree."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from functools import partial
from itertools import pairwise

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.application import World, fake_world

from builderd.builders.model import Builder
from builderd.core.ids import TenantId
from builderd.core.resources import Resources
from builderd.database.unit_of_work import UnitOfWork
from builderd.money import service as spending
from builderd.money.model import Billing, Sum, month_of, next_month

SIZES = (Resources(1, 1, 3), Resources(0.3, 0.7, 1.1), Resources(8, 16, 100))
#: (state, size, seconds since the change before: those of other clocks may lie before it)
changes = st.lists(
    st.tuples(
        st.sampled_from([Billing.RUNNING, Billing.FROZEN, Billing.STOPPED]),
        st.sampled_from(SIZES),
        st.floats(-100_000, 3_000_000, allow_subnormal=False),
    ),
    min_size=1,
    max_size=12,
)


@given(changes, st.floats(0, 5_000_000), st.booleans())
@settings(max_examples=30, suppress_health_check=list(HealthCheck))
def test_every_moment_is_paid_once_at_the_rate_that_held_then(
    happened: list[tuple[Billing, Resources, float]], rest: float, ended: bool
) -> None:
    asyncio.run(check(happened, rest, ended=ended))


async def check(happened: list[tuple[Billing, Resources, float]], rest: float, *, ended: bool) -> None:
    async with fake_world() as world:
        builder = await world.ask()
        expected, at = await bill(world, builder, happened)
        now = at + timedelta(seconds=rest)
        if ended:
            await world.application.store.write(lambda uow: uow.ledger.close(builder.id, now))
        expected.append((now, None))
        segments = await world.segments(builder)
        for earlier, later in pairwise(segments):
            assert earlier.end == later.start
        assert (segments[0].start, segments[-1].end) == (expected[0][0], now if ended else None)
        whole = await world.read(lambda uow: uow.ledger.totals([builder.id], now))
        assert Fraction(whole[builder.id].paid) == due(expected)
        if ended:
            assert await over_months(world, expected[0][0], now) == due(expected)


async def over_months(world: World, since: datetime, until: datetime) -> Fraction:
    """Return the sum of the months, each as the store gives it by itself."""
    tenant, month, whole = world.caller.tenant_id, month_of(since), Fraction(0)
    while month <= until:
        found = await world.read(partial(_of_month, tenant=tenant, month=month))
        whole += Fraction(found.paid)
        month = next_month(month)
    return whole


def _of_month(uow: UnitOfWork, tenant: TenantId, month: datetime) -> Sum:
    return uow.ledger.month_of_tenant(tenant, month)


async def bill(
    world: World, builder: Builder, happened: list[tuple[Billing, Resources, float]]
) -> tuple[list[tuple[datetime, Decimal | None]], datetime]:
    """Each change of the ledger, and what should follow: (from when on, which rate)."""
    prices, at = world.application.prices, world.clock.now()
    expected: list[tuple[datetime, Decimal | None]] = []
    known: tuple[Billing, Decimal] | None = None
    for billing, size, seconds in happened:
        asked = at + timedelta(seconds=seconds)

        def write(uow: UnitOfWork, billing: Billing = billing, size: Resources = size, asked: datetime = asked) -> None:
            found = uow.builders.get(builder.id, lock=True)
            assert found is not None
            spending.bill(uow, prices, found, size, billing, asked)

        await world.application.store.write(write)
        rate = prices.hourly_rate(size, billing)
        at = max(asked, expected[-1][0]) if expected else asked
        if (billing, rate) != known:  # what is so already is no change
            expected.append((at, rate))
            known = (billing, rate)
    return expected, at


def due(expected: list[tuple[datetime, Decimal | None]]) -> Fraction:
    """Seconds times rates, with no code of the ledger in it."""
    micro = timedelta(microseconds=1)
    return sum(
        (Fraction((until - since) // micro, 1_000_000) * Fraction(rate or 0))
        for (since, rate), (until, _) in pairwise(expected)
    ) + Fraction(0)
