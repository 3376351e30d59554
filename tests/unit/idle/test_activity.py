"""Visits are written down, as precisely as the preview knows them."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import datetime, timedelta

import pytest
from tests.application import World

from builderd.builders.model import Builder
from builderd.idle import job as idle
from builderd.idle.job import Idleness
from builderd.previews.model import PreviewActivity

VISITED = PreviewActivity(10, 100, 200, 0, 0, idle_seconds=3)
OPEN = replace(VISITED, open_connections=1, idle_seconds=600)
LONG_AGO = replace(VISITED, idle_seconds=600)


async def up(world: World) -> Builder:
    async with world.reconciling():
        builder = await world.create()
    world.clock.move(1000)
    return builder


# Without a visit: when it came up.
@pytest.mark.parametrize(("visit", "ago"), [(VISITED, 3), (OPEN, 0), (LONG_AGO, 600), (None, 1000)])
async def test_the_last_visit_is_written_down(world: World, visit: PreviewActivity | None, ago: float) -> None:
    builder = await up(world)
    if visit:
        world.previews.visit(builder.host, visit)
    await idle.note(world.application)
    assert (await world.builder(builder)).last_active_at == world.clock.now() - timedelta(seconds=ago)


async def test_a_visit_that_is_known_already_is_not_written_again(world: World) -> None:
    builder = await up(world)
    world.previews.visit(builder.host, VISITED)
    await idle.note(world.application)
    before = await world.builder(builder)
    world.clock.move(0.5)
    await idle.note(world.application)
    assert await world.builder(builder) == before


async def test_a_visit_from_before_the_last_reading_is_not_looked_up(world: World) -> None:
    builder = await up(world)
    world.previews.visit(builder.host, LONG_AGO)
    before = await world.builder(builder)
    await idle.note(world.application, within=599)
    assert await world.builder(builder) == before


async def test_an_older_visit_does_not_undo_a_later_one(world: World) -> None:
    builder = await up(world)
    now = world.clock.now()
    await world.change(builder, last_active_at=now)
    world.previews.visit(builder.host, VISITED)
    await idle.note(world.application)
    assert (await world.builder(builder)).last_active_at == now


async def test_hosts_that_no_builder_has_are_passed_over(world: World) -> None:
    world.previews.visit("gone-00000000.localhost", OPEN)
    await idle.note(world.application)


async def test_activity_watch_survives_unavailable_previews(world: World) -> None:
    builder = await up(world)
    world.previews.break_down()
    watching = asyncio.create_task(Idleness(world.application).watch())
    await asyncio.sleep(0.01)
    await world.previews.start()
    world.previews.visit(builder.host, OPEN)
    before = world.clock.now()
    await world.until(lambda: seen_since(world, builder, before))
    watching.cancel()


async def seen_since(world: World, builder: Builder, before: datetime) -> bool:
    at = (await world.builder(builder)).last_active_at
    return at is not None and at >= before
