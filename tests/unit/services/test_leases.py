"""A builder is busy until its leases are over, and keeps none that are."""

from __future__ import annotations

import pytest
from tests.application import World

from builderd.domain.builders import MAX_LEASES, Builder
from builderd.domain.errors import InvalidState
from builderd.services import builders, leases
from builderd.store import UnitOfWork


async def take(world: World, builder: Builder, count: int, seconds: int = 1) -> None:
    now, caller = world.clock.now(), world.caller

    def write(uow: UnitOfWork) -> None:
        locked = builders.get(uow, caller.tenant_id, builder.id, lock=True)
        new = leases.NewLease(caller.actor, seconds, "an import")
        for _ in range(count):
            leases.take(uow, world.application, locked, new, now)

    await world.application.store.write(write)


async def kept(world: World, builder: Builder) -> int:
    return len(await world.read(lambda uow: uow.leases.of_builder(builder.id)))


async def test_expired_leases_are_deleted(world: World) -> None:
    builder = await world.ask(auto_stop_interval=0)
    for _ in range(3):
        await take(world, builder, MAX_LEASES)
        world.clock.move(2)
    assert await kept(world, builder) == MAX_LEASES
    await take(world, builder, 1)
    assert await kept(world, builder) == 1


async def test_expired_lease_counts_as_use(world: World) -> None:
    builder = await world.ask()
    await take(world, builder, 1)
    world.clock.move(2)
    await take(world, builder, 1)
    assert (await world.builder(builder)).last_active_at == world.clock.now()


async def test_refused_lease_changes_nothing(world: World) -> None:
    builder = await world.ask()
    await take(world, builder, 1)
    world.clock.move(2)
    with pytest.raises(InvalidState, match="100 leases"):
        await take(world, builder, MAX_LEASES + 1)
    assert await kept(world, builder) == 1


async def test_a_deleted_builder_has_none(world: World) -> None:
    async with world.reconciling():
        builder = await world.create()
        await take(world, builder, 2, seconds=3600)
        await world.reached(builders.delete, builder)
    assert await kept(world, builder) == 0
