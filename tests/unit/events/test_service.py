"""A reconnecting follower gets every event once, on both databases."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.application import World, fake_world
from tests.contract.store.samples import make_event
from tests.stores import open_store

from builderd.builders.model import Builder, Desired, Status
from builderd.core.ids import BuilderId, TenantId
from builderd.database.unit_of_work import Store, UnitOfWork
from builderd.events import service as events
from builderd.events.model import Event
from builderd.events.store import EventQuery

PATIENCE = 30
POSTGRES = pytest.param("postgres", marks=pytest.mark.postgres)


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "LOOK_INTERVAL", 0.01)
    monkeypatch.setattr(events, "LEAST_INTERVAL", 0.001)


@pytest.fixture
async def world() -> AsyncIterator[World]:
    async with fake_world() as world:
        yield world


def happening(tenant: TenantId, builder: BuilderId | None, **changes: Any) -> Event:
    return make_event(builder or BuilderId(""), **{"tenant_id": tenant, "builder_id": builder, **changes})


async def record(store: Store, event: Event) -> int:
    return (await store.write(lambda uow: uow.events.add(event))).id


async def taken(world: World, count: int, after: int = 0, query: EventQuery | None = None) -> list[int]:
    """The ids of the next so many events."""
    ids: list[int] = []
    async with asyncio.timeout(PATIENCE):
        follower = events.follow(world.application, world.caller.tenant_id, query or EventQuery(), after)
        async with aclosing(follower):
            async for event in follower:
                ids.append(event.id)
                if len(ids) == count:
                    break
    return ids


@pytest.mark.parametrize("database", ["file", POSTGRES])
async def test_a_follower_that_keeps_coming_back_gets_every_event_of_many_writers_once(
    world: World, database: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    url = f"sqlite:///{tmp_path}/b.db" if database == "file" else request.getfixturevalue("postgres_url")
    async with open_store(url) as one, open_store(url) as two:
        tenant = await world.read(lambda uow: uow.tenants.get(world.caller.tenant_id))
        assert tenant is not None
        await one.write(lambda uow: uow.tenants.add(tenant))
        world = replace(world, application=replace(world.application, store=two))

        def write(milliseconds: int) -> Callable[[UnitOfWork], int]:
            def work(uow: UnitOfWork) -> int:
                added = uow.events.add(happening(tenant.id, None))
                # What is committed late has drawn its id early.
                time.sleep(milliseconds / 1000)
                return added.id

            return work

        writers = asyncio.gather(*(store.write(write(n % 4)) for n in range(60) for store in (one, two)))
        seen: list[int] = []
        while len(seen) < 120:
            # Broken off at any place, as by a lost connection.
            seen += await taken(world, min(7, 120 - len(seen)), seen[-1] if seen else 0)
        assert seen == sorted(await writers)


async def test_follower_starts_now_or_after_an_id(world: World) -> None:
    tenant, store = world.caller.tenant_id, world.application.store
    now = world.clock.now()
    ids = [await record(store, happening(tenant, None, time=now)) for _ in range(3)]

    async def start_after(query: EventQuery, given: int | None) -> int:
        return await events.start_after(world.application, tenant, query, given)

    assert await start_after(EventQuery(), None) == ids[-1]
    assert await start_after(EventQuery(), ids[0]) == ids[0]
    assert await start_after(EventQuery(), 10**17) == ids[-1], "what gets such an id must not be passed over"
    assert await start_after(EventQuery(since=now), None) == 0
    assert await taken(world, 2, ids[0]) == ids[1:]


async def test_follower_gets_new_events_of_its_tenant_at_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "LOOK_INTERVAL", PATIENCE)
    other = await world.tenant("other")
    waiting = asyncio.create_task(taken(world, 1))
    await asyncio.sleep(0.01)
    await record(world.application.store, happening(other.tenant_id, None))
    told = await record(world.application.store, happening(world.caller.tenant_id, None))
    world.application.signals.change(BuilderId("whichever"))
    assert await waiting == [told]


async def test_follower_of_a_builder_ends_after_its_deletion(world: World) -> None:
    builder = await world.ask()
    query = EventQuery(builder=builder.id)
    following = asyncio.create_task(taken(world, 10, query=query))
    await record(world.application.store, happening(world.caller.tenant_id, None))
    last = await record(world.application.store, happening(world.caller.tenant_id, builder.id))
    await _delete(world, builder)
    assert (await following)[-1] == last


async def _delete(world: World, builder: Builder) -> None:
    await world.change(builder, desired=Desired.DELETED, status=Status.DELETED, deleted_at=world.clock.now())


async def test_a_page_is_all_that_a_follower_holds(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "PAGE", 2)
    ids = [await record(world.application.store, happening(world.caller.tenant_id, None)) for _ in range(7)]
    assert await taken(world, 7) == ids
