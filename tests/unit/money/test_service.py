"""Costs of a tenant's builders."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from decimal import Decimal
from itertools import combinations

from tests.application import World
from tests.statements import statements

from builderd.builders import service as builders
from builderd.builders.lists import ListedCost
from builderd.builders.model import Builder, Desired
from builderd.core.resources import Resources
from builderd.database.unit_of_work import UnitOfWork
from builderd.money import service as spending
from builderd.money.model import Billing, Segment, Sum, cents, month_of, rate_digits, total
from builderd.money.service import CostReport, Span

HOUR = timedelta(hours=1)
RUNNING, STOPPED = Decimal("0.1965"), Decimal("0.0165")


async def pay(world: World, builder: Builder, billing: Billing, hours: float | None, rate: Decimal) -> None:
    """So many hours from now on; None: from now on for ever."""
    start = world.clock.now()
    end = start + hours * HOUR if hours is not None else None
    segment = Segment(builder.tenant_id, builder.id, billing, start, end, rate)
    await world.application.store.write(lambda uow: uow.ledger.open(segment))
    world.clock.move((hours or 0) * 3600)


async def report(
    world: World, since: datetime | None = None, until: datetime | None = None, page: int = 1
) -> CostReport[ListedCost]:
    span = Span(since, until, page, per_page=3)
    return await world.read(
        lambda uow: spending.report(uow, world.application, world.caller.tenant_id, world.clock.now(), span)
    )


async def test_a_tenant_without_builders_spends_nothing(world: World) -> None:
    nothing: CostReport[ListedCost] = CostReport("EUR", Decimal("0.00"), (), 0)
    assert await report(world) == nothing


async def test_costs_add_up_over_running_and_rest_deleted_builders_included(world: World) -> None:
    first = await world.ask(name="first")
    world.clock.move(1)
    second = await world.ask(name="second")
    await pay(world, first, Billing.RUNNING, 10, RUNNING)
    await pay(world, first, Billing.STOPPED, 100, STOPPED)
    await world.want(builders.delete, first)
    await pay(world, second, Billing.RUNNING, None, RUNNING)
    world.clock.move(3600)
    shown = await report(world)
    assert [(builder.name, cost.runtime_hours, cost.cost) for builder, cost in shown.deployments] == [
        ("first", Decimal("10.0000"), Decimal("3.62")),
        ("second", Decimal("1.0000"), Decimal("0.20")),
    ]
    # 3.615 + 0.1965, rounded once
    assert shown.total_cost == Decimal("3.81")


async def test_only_the_time_asked_for_counts(world: World) -> None:
    builder = await world.ask()
    begun = world.clock.now()
    await pay(world, builder, Billing.RUNNING, 10, RUNNING)
    shown = await report(world, since=begun + 4 * HOUR, until=begun + 6 * HOUR)
    assert (shown.total_cost, shown.deployments[0][1].runtime_hours) == (Decimal("0.39"), Decimal(2))


async def test_over_any_span_it_is_what_the_whole_ledger_says(world: World) -> None:
    first, second, third = [await world.ask(name=name) for name in ("first", "second", "third")]
    begun = world.clock.now()
    for hours, billing, rate in ((3, Billing.RUNNING, RUNNING), (5, Billing.STOPPED, STOPPED)) * 3:
        await pay(world, first, billing, hours, rate)
    await pay(world, second, Billing.RUNNING, None, RUNNING)
    world.clock.move(2.5 * 3600)
    await pay(world, third, Billing.RUNNING, None, RUNNING)
    world.clock.move(3600)
    now, ids = world.clock.now(), [first.id, second.id, third.id]
    ledger = await world.read(lambda uow: uow.ledger.of_builders(ids))
    assert sorted(len(segments) for segments in ledger.values()) == [1, 1, 6]
    marks = [None, *(begun + hours * HOUR for hours in (-1, 0, 1.5, 3, 8, 11, 24, 25, 26.5, 27.5, 30))]
    for since, until in combinations([*marks, None], 2):
        shown = await report(world, since, until)
        sums = {one: total(segments, now, since, until) for one, segments in ledger.items()}
        assert {builder.id: (cost.runtime_hours, cost.cost) for builder, cost in shown.deployments} == {
            one: (rate_digits(spent.hours), cents(spent.money)) for one, spent in sums.items()
        }
        assert shown.total_cost == cents(sum(sums.values(), Sum()).money)


async def test_dearest_come_first_deleted_ones_included_and_their_environment_is_not_read(world: World) -> None:
    first, second, third = [await world.ask(name=name, env={"LARGE": "x" * 100_000}) for name in ("a", "b", "c")]
    month = month_of(world.clock.now())
    await pay(world, first, Billing.RUNNING, 1, RUNNING)
    await pay(world, second, Billing.RUNNING, 3, RUNNING)
    await pay(world, third, Billing.STOPPED, 0, STOPPED)
    await world.want(builders.delete, second)
    now, tenant = world.clock.now(), world.caller.tenant_id
    with statements(world.application.store) as seen:
        found = await world.read(lambda uow: spending.dearest(uow, world.application, tenant, now, month, 9))
    assert [(one.name, one.desired, cost.hourly_rate, cost.cost) for one, cost in found.deployments] == [
        ("b", Desired.DELETED, RUNNING, Decimal("0.59")),
        ("a", Desired.RUNNING, RUNNING, Decimal("0.20")),
    ]
    of_builders = [one for one in seen if "FROM builders" in one]
    assert len(of_builders) == 1
    columns = of_builders[0].partition("FROM")[0].removeprefix("SELECT").split(",")
    assert [one.strip() for one in columns] == [
        *("builders.id", "builders.name", "builders.desired"),
        *("versions.cpu", "versions.memory", "versions.disk"),
    ]
    assert not any("versions.env" in one for one in seen)


async def test_a_tenant_does_not_see_what_others_spend(world: World) -> None:
    await pay(world, await world.ask(), Billing.RUNNING, 10, RUNNING)
    world.caller = await world.tenant("other")
    assert (await report(world)).deployments == ()


SMALL = Resources(1, 1, 3)


async def write(world: World, builder: Builder, work: Callable[[UnitOfWork, Builder], object]) -> None:
    def locked(uow: UnitOfWork) -> None:
        found = uow.builders.get(builder.id, lock=True)
        assert found is not None
        work(uow, found)

    await world.application.store.write(locked)


async def bill(world: World, builder: Builder, billing: Billing, seconds: float = 0) -> None:
    at, prices = world.clock.now() + timedelta(seconds=seconds), world.application.prices
    await write(world, builder, lambda uow, found: spending.bill(uow, prices, found, SMALL, billing, at))


async def freeze(world: World, builder: Builder) -> None:
    at, prices = world.clock.now(), world.application.prices
    await write(
        world, builder, lambda uow, found: spending.turn(uow, prices, found, Billing.RUNNING, Billing.FROZEN, at)
    )


async def thaw(world: World, builder: Builder) -> None:
    at, prices = world.clock.now(), world.application.prices
    await write(
        world, builder, lambda uow, found: spending.turn(uow, prices, found, Billing.FROZEN, Billing.RUNNING, at)
    )


async def spans(world: World, builder: Builder) -> list[tuple[Billing, float | None]]:
    return [
        (one.billing, None if one.end is None else (one.end - one.start).total_seconds())
        for one in await world.segments(builder)
    ]


async def test_only_what_runs_freezes_and_only_what_is_frozen_thaws(world: World) -> None:
    builder = await world.ask()
    await freeze(world, builder)
    await thaw(world, builder)
    assert await spans(world, builder) == []
    await bill(world, builder, Billing.STOPPED)
    await freeze(world, builder)
    await thaw(world, builder)
    assert await spans(world, builder) == [(Billing.STOPPED, None)]


async def test_a_time_before_the_present_segment_is_taken_as_its_beginning(world: World) -> None:
    builder = await world.ask()
    await bill(world, builder, Billing.RUNNING)
    await bill(world, builder, Billing.STOPPED, seconds=-60)
    assert await spans(world, builder) == [(Billing.RUNNING, 0), (Billing.STOPPED, None)]
