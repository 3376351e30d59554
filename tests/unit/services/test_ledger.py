"""The ledger goes from one state to the next, without a gap, and says nothing twice."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from decimal import Decimal

from tests.application import World

from builderd.domain.builders import Builder
from builderd.domain.prices import Billing
from builderd.domain.resources import Resources
from builderd.services import spending
from builderd.store import UnitOfWork

SMALL = Resources(1, 1, 3)


async def write(world: World, builder: Builder, work: Callable[[UnitOfWork, Builder], None]) -> None:
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
    await write(world, builder, lambda uow, found: spending.freeze(uow, prices, found, at))


async def thaw(world: World, builder: Builder) -> None:
    at, prices = world.clock.now(), world.application.prices
    await write(world, builder, lambda uow, found: spending.thaw(uow, prices, found, at))


async def spans(world: World, builder: Builder) -> list[tuple[Billing, float | None]]:
    return [
        (one.billing, None if one.end is None else (one.end - one.start).total_seconds())
        for one in await world.segments(builder)
    ]


async def test_a_frozen_builder_pays_no_cpu_until_it_is_thawed(world: World) -> None:
    builder = await world.ask()
    await bill(world, builder, Billing.RUNNING)
    world.clock.move(60)
    await freeze(world, builder)
    world.clock.move(600)
    await thaw(world, builder)
    assert await spans(world, builder) == [(Billing.RUNNING, 60), (Billing.FROZEN, 600), (Billing.RUNNING, None)]
    rates = [segment.hourly_rate for segment in await world.segments(builder)]
    assert rates == [Decimal("0.1965"), Decimal("0.0765"), Decimal("0.1965")]


async def test_only_what_runs_freezes_and_only_what_is_frozen_thaws(world: World) -> None:
    builder = await world.ask()
    await freeze(world, builder)
    await thaw(world, builder)
    assert await spans(world, builder) == []
    await bill(world, builder, Billing.STOPPED)
    await freeze(world, builder)
    await thaw(world, builder)
    assert await spans(world, builder) == [(Billing.STOPPED, None)]


async def test_same_state_and_rate_changes_nothing(world: World) -> None:
    builder = await world.ask()
    for _ in range(2):
        await bill(world, builder, Billing.RUNNING)
        world.clock.move(60)
    assert await spans(world, builder) == [(Billing.RUNNING, None)]


async def test_a_time_before_the_present_segment_is_taken_as_its_beginning(world: World) -> None:
    builder = await world.ask()
    await bill(world, builder, Billing.RUNNING)
    await bill(world, builder, Billing.STOPPED, seconds=-60)
    assert await spans(world, builder) == [(Billing.RUNNING, 0), (Billing.STOPPED, None)]
