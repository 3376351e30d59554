"""The end of a month: what runs over it is paid in both months, and no cap of the old one stops anything in the new."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from decimal import Decimal

import pytest
from tests.application import World
from tests.unit.money.test_job import cap, spent
from tests.unit.reconciler.ledgers import check_ledger
from tests.unit.reconciler.mortal import living

from builderd.application import Application
from builderd.builders import service as builders
from builderd.builders.model import Builder, Desired, Status
from builderd.core.ids import BuilderId, TenantId
from builderd.database.unit_of_work import UnitOfWork
from builderd.money import job
from builderd.money.model import OpenBuild, cents, month_of, next_month
from builderd.reconciler.builds import close_cut_builds

#: What the builder of these tests costs in an hour while it runs.
RATE = Decimal("0.1965")
HOUR = timedelta(hours=1)


def until_month_end(world: World) -> timedelta:
    return next_month(world.clock.now()) - world.clock.now()


async def created_before_the_end(world: World, before: timedelta) -> Builder:
    """A builder that begins to run this long before the month's end."""
    world.clock.move((until_month_end(world) - before).total_seconds())
    return await world.create()


async def paid_in(world: World, builder: Builder, month: datetime) -> Decimal:
    now = world.clock.now()
    return (await world.read(lambda uow: uow.ledger.month_of_builders([builder.id], now, month)))[builder.id].money


async def test_builder_that_runs_over_the_end_is_paid_in_each_month_for_its_time_there(world: World) -> None:
    async with world.reconciling():
        builder = await created_before_the_end(world, HOUR)
        old = month_of(world.clock.now())
        await cap(world, Decimal(1))
        world.clock.move(3 * 3600)
        new = month_of(world.clock.now())
        await world.want(builders.delete, builder)
        await world.until_nothing_is_left()
    assert await paid_in(world, builder, old) == RATE
    assert cents(await paid_in(world, builder, new)) == cents(2 * RATE)
    now, tenant = world.clock.now(), world.caller.tenant_id
    assert (await world.read(lambda uow: uow.ledger.month_of_tenant(tenant, now, old))).money == RATE
    total = (await world.read(lambda uow: uow.ledger.total_of_tenant(tenant, now))).money
    assert total == RATE + await paid_in(world, builder, new)
    await check_ledger(world, builder)


async def test_segment_that_ends_with_the_month_is_not_in_the_next(world: World) -> None:
    async with world.reconciling():
        builder = await created_before_the_end(world, HOUR)
        old = month_of(world.clock.now())
        world.clock.move(3600)
        await world.want(builders.delete, builder)
        await world.until_nothing_is_left()
    assert await paid_in(world, builder, old) == RATE
    assert await spent(world) == 0


async def test_cap_that_was_judged_in_the_old_month_stops_nothing_in_the_new(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = job.judge
    crossed: list[Sequence[BuilderId]] = []

    def judge_late(uow: UnitOfWork, application: Application, tenant: TenantId, now: datetime) -> job.CapDecision:
        verdict = judge(uow, application, tenant, now)
        if verdict.stop and not crossed:
            crossed.append(verdict.stop)
            world.clock.move(until_month_end(world).total_seconds())
        return verdict

    monkeypatch.setattr(job, "judge", judge_late)
    async with world.reconciling():
        builder = await created_before_the_end(world, HOUR)
        world.clock.move(3000)
        await cap(world, Decimal("0.10"))
        await world.until(lambda: crossed)
        await job.check_due(world.application)
        now = await world.builder(builder)
        assert (crossed, now.desired, now.status) == ([[builder.id]], Desired.RUNNING, Status.RUNNING)
        world.clock.move(float(Decimal("0.10") / RATE * 3600) + 1)
        await world.until_status(builder, Status.STOPPED)
        assert await spent(world) == Decimal("0.10")


async def test_service_that_is_killed_at_a_cap_before_the_end_stops_nothing_after_it(world: World) -> None:
    async with living(world) as life:
        builder = await created_before_the_end(life.world, HOUR)
    world.clock.move(3000)
    await cap(world, Decimal("0.10"))
    async with living(world, "Cap.begun") as life:
        await world.until(lambda: life.is_over)
    world.clock.move(until_month_end(world).total_seconds())
    async with living(world) as life:
        await world.until(lambda: _is_planned_after(world, world.clock.now()))
        assert (await world.builder(builder)).desired is Desired.RUNNING


async def _is_planned_after(world: World, now: datetime) -> bool:
    return not await world.read(lambda uow: uow.tenants.spending_due(now + timedelta(seconds=10)))


async def test_build_that_was_cut_over_the_end_is_charged_in_both_months(world: World) -> None:
    async with world.reconciling():
        builder = await created_before_the_end(world, HOUR)
    old, longest = month_of(world.clock.now()), timedelta(seconds=world.application.limits.build_timeout)
    world.clock.move(2 * 3600)
    before = [await paid_in(world, builder, month) for month in (old, next_month(old))]
    begun = next_month(old) - longest / 2
    build = OpenBuild("b", builder.tenant_id, builder.id, begun, begun + longest)
    await world.application.store.write(lambda uow: uow.open_builds.add(build))
    await close_cut_builds(world.application)
    [trial] = await world.trials(builder)
    half = trial.hourly_rate * Decimal(longest.total_seconds()) / 2 / 3600
    assert (trial.start, trial.end) == (begun, begun + longest)
    assert [
        await paid_in(world, builder, month) - was for month, was in zip((old, next_month(old)), before, strict=True)
    ] == [half, half]
