"""File access counts as use of the builder and wakes nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from tests.application import World

from builderd.builders.model import Builder
from builderd.files import service as files
from builderd.files.model import Condition

Use = Callable[[World, Builder], Awaitable[object]]


async def list_them(world: World, builder: Builder) -> None:
    await files.list_page(world.application, builder.tenant_id, builder.id, "", 0, 10)


async def read_one(world: World, builder: Builder) -> None:
    async with files.opened(world.application, builder.tenant_id, builder.id, "main.py"):
        pass


async def write_one(world: World, builder: Builder) -> None:
    async def content() -> AsyncIterator[bytes]:
        yield b"new"

    await files.write(
        world.application,
        builder.tenant_id,
        builder.id,
        "new.txt",
        files.NewContent(content(), 3),
        Condition(),
    )


async def delete_one(world: World, builder: Builder) -> None:
    where = world.application, builder.tenant_id, builder.id, "main.py"
    await files.delete(*where, condition=Condition(), recursive=False)


async def pack_them(world: World, builder: Builder) -> None:
    async with files.archive(world.application, builder.tenant_id, builder.id) as packed:
        async for _ in packed:
            pass


@pytest.mark.parametrize("use", [list_them, read_one, write_one, delete_one, pack_them])
async def test_any_call_is_a_use(world: World, use: Use) -> None:
    async with world.reconciling():
        builder = await world.create(auto_stop_interval=15)
        world.clock.move(100)
        await use(world, builder)
        assert (await world.builder(builder)).last_active_at == world.clock.now()


async def test_file_access_does_not_thaw(world: World) -> None:
    async with world.reconciling():
        builder = await world.create(auto_stop_interval=15)
        await world.change(builder, asleep_since=world.clock.now())
        world.application.signals.desired_changed(builder.id)
        await world.until(lambda: world.running[0].frozen)
        await write_one(world, builder)
        assert (await world.builder(builder)).asleep_since is not None


async def test_uses_that_follow_one_another_are_written_down_once(world: World) -> None:
    async with world.reconciling():
        builder = await world.create(auto_stop_interval=15)
    world.clock.move(100)
    await list_them(world, builder)
    first = (await world.builder(builder)).last_active_at
    world.clock.move(0.5)
    await list_them(world, builder)
    assert (await world.builder(builder)).last_active_at == first
