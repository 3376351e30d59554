"""A cap is warned of, stops what runs under it in time, and holds until the month is over or it is raised."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal

import pytest
from tests.application import World
from tests.unit.reconciler.ledgers import check_ledger
from tests.unit.reconciler.mortal import living

from builderd.builders import service as builders
from builderd.builders.model import Builder, Desired, Status
from builderd.core.errors import QuotaExceeded
from builderd.database.unit_of_work import UnitOfWork
from builderd.events.model import SYSTEM, Event
from builderd.events.store import EventQuery
from builderd.money import caps, job
from builderd.money.model import SECONDS_PER_HOUR
from builderd.previews.model import RouteState
from builderd.reconciler.worker import LEASE
from builderd.tokens.limits import TenantLimit, TenantLimits

REASON = "spending cap of 5.00 EUR reached"
FIVE = Decimal("5.00")


async def cap(world: World, amount: Decimal | None, builder: Builder | None = None) -> None:
    """Set the cap of the tenant, or of a builder."""
    now, tenant = world.clock.now(), world.caller.tenant_id

    def write(uow: UnitOfWork) -> None:
        if builder is None:
            caps.set_for_tenant(uow, world.application, tenant, amount, now)
            return
        found = builders.get(uow, tenant, builder.id, lock=True)
        caps.set_for_builder(uow, world.application, found, amount, now)

    await world.application.store.write(write)


async def spent(world: World) -> Decimal:
    tenant, now = world.caller.tenant_id, world.clock.now()
    return (await world.read(lambda uow: caps.view_of_tenant(uow, world.application, tenant, now))).spent


async def warnings(world: World, builder: Builder | None = None) -> Sequence[Event]:
    """Return the warnings of the tenant, or of a builder."""
    if builder is None:
        tenant = world.caller.tenant_id
        return await world.read(
            lambda uow: uow.events.following(tenant, EventQuery(types=[job.WARNING]), after=0, limit=100)
        )
    return [event for event in await world.events(builder) if event.type == job.WARNING]


async def due(world: World) -> None:
    """The time has come at which the tenant is to be looked at next."""
    future = world.clock.now() + timedelta(days=60)
    ((_, at),) = await world.read(lambda uow: uow.tenants.spending_due(future))
    world.clock.move((at - world.clock.now()).total_seconds())


async def test_a_tenants_builders_are_warned_of_and_then_stopped_at_the_cap(world: World) -> None:
    async with world.reconciling():
        one, two = await world.create(name="one"), await world.create(name="two")
        await cap(world, FIVE)
        await world.until(lambda: _is_planned(world))
        await due(world)
        await world.until(lambda: _is_warned(world))
        assert await spent(world) == Decimal("4.00")
        assert [event.reason for event in await warnings(world)] == [
            "80 % of the tenant's spending cap of 5.00 EUR are spent"
        ]
        assert {(await world.builder(each)).status for each in (one, two)} == {Status.RUNNING}
        await world.until(lambda: _is_planned(world))
        await due(world)
        for each in (one, two):
            stopped = await world.until_status(each, Status.STOPPED)
            assert (stopped.status_reason, stopped.cause.actor) == (REASON, SYSTEM)
            assert (await world.until_route(each, RouteState.CAPPED)).destination is None
        assert await spent(world) == FIVE
        assert len(await warnings(world)) == 1
        for each in (one, two):
            await check_ledger(world, each)


async def _is_planned(world: World) -> bool:
    """Return True if it was observed, and waits for a time to come."""
    now, later = world.clock.now() + job.LEASE, world.clock.now() + timedelta(days=60)
    soon = await world.read(lambda uow: uow.tenants.spending_due(now))
    return not soon and bool(await world.read(lambda uow: uow.tenants.spending_due(later)))


async def _is_warned(world: World) -> bool:
    return bool(await warnings(world))


async def test_a_builders_own_cap_stops_it_alone(world: World) -> None:
    async with world.reconciling():
        one, two = await world.create(name="one"), await world.create(name="two")
        await cap(world, FIVE, one)
        world.clock.move(float(FIVE / Decimal("0.1965") * SECONDS_PER_HOUR) + 1)
        await world.until_status(one, Status.STOPPED)
        assert (await world.builder(one)).status_reason == REASON
        assert (await world.builder(two)).status is Status.RUNNING
        assert [event.reason for event in await warnings(world, one)] == [
            "100 % of the builder's spending cap of 5.00 EUR are spent"
        ]
        assert await warnings(world, two) == []


async def test_over_the_cap_nothing_is_created_or_started_until_it_is_raised(world: World) -> None:
    async with world.reconciling():
        builder = await world.create()
        await cap(world, Decimal(0))
        await world.until_status(builder, Status.STOPPED)
        for ask in (
            world.ask(name="other"),
            world.want(builders.start, builder),
            world.want(builders.restart, builder),
        ):
            with pytest.raises(QuotaExceeded, match=r"spending cap of 0\.00 EUR is reached"):
                await ask
        await cap(world, None)
        assert (await world.reached(builders.start, builder)).status is Status.RUNNING


async def test_in_the_next_month_it_may_run_again(world: World) -> None:
    async with world.reconciling():
        builder = await world.create()
        await cap(world, FIVE)
        world.clock.move(26 * 3600)
        await world.until_status(builder, Status.STOPPED)
        with pytest.raises(QuotaExceeded) as refused:
            await world.want(builders.start, builder)
        assert refused.value.retry_after is not None
        world.clock.move(refused.value.retry_after)
        assert await spent(world) == 0
        assert (await world.reached(builders.start, builder)).status is Status.RUNNING
        world.clock.move(26 * 3600)
        await world.until_status(builder, Status.STOPPED)
        assert len(await warnings(world)) == 2


async def test_operator_cap_applies_over_the_tenants(world: World) -> None:
    limited = TenantLimits(TenantLimit(monthly=FIVE, builder_monthly=FIVE))
    world = replace(world, application=replace(world.application, tenant_limits=limited))
    async with world.reconciling():
        builder = await world.create()
        await cap(world, None)
        world.clock.move(26 * 3600)
        assert (await world.until_status(builder, Status.STOPPED)).status_reason == REASON


async def test_raised_cap_warns_again(world: World) -> None:
    async with world.reconciling():
        builder = await world.create()
        await cap(world, Decimal(3))
        world.clock.move(14 * 3600)
        await world.until(lambda: _is_warned(world))
        await cap(world, Decimal(100))
        world.clock.move(400 * 3600)
        await world.until(lambda: _warned_twice(world))
        assert (await world.builder(builder)).status is Status.RUNNING


async def _warned_twice(world: World) -> bool:
    return len(await warnings(world)) == 2


async def test_a_person_stopped_it_first_and_the_cap_says_nothing(world: World) -> None:
    async with world.reconciling():
        builder = await world.reached(builders.stop, await world.create())
        await cap(world, Decimal(0))
        await world.until(lambda: _is_planned(world))
        assert "stopped by" in (await world.builder(builder)).status_reason


async def test_a_start_that_makes_it_dearer_brings_the_end_forward(world: World) -> None:
    async with world.reconciling():
        builder = await world.create(name="one")
        await cap(world, FIVE)
        await world.until(lambda: _is_planned(world))
        for name in ("two", "three", "four"):
            await world.create(name=name)
        world.clock.move(7 * 3600)
        assert (await world.until_status(builder, Status.STOPPED)).status_reason == REASON


@pytest.mark.parametrize("point", ["Cap.begun", "Cap.done", "Cap.recorded"])
async def test_a_service_killed_while_it_looks_at_the_spending_stops_it_in_its_next_life(
    world: World, point: str
) -> None:
    async with living(world) as life:
        one, two = await life.world.create(name="one"), await life.world.create(name="two")
        await cap(world, FIVE)
        await world.until(lambda: _is_planned(world))
    world.clock.move(100 * 3600)
    async with living(world, point) as life:
        await world.until(lambda: life.is_over)
    world.clock.move(LEASE.total_seconds())
    async with living(world):
        for each in (one, two):
            stopped = await world.until_status(each, Status.STOPPED)
            assert (stopped.status_reason, stopped.desired) == (REASON, Desired.STOPPED)
        await world.until_nothing_runs()
    assert len(await warnings(world)) == 1
