"""Calls of the store, each a unit of work of its own, or several as the reconciler has them."""

from __future__ import annotations

from datetime import datetime

from tests.contract.store.samples import SECOND

from builderd.domain.events import Event
from builderd.domain.ids import BuilderId
from builderd.store import Store, UnitOfWork


async def claim(store: Store, builder: BuilderId, owner: str, now: datetime, seconds: float = 30) -> bool:
    return await store.write(lambda uow: uow.builders.claim(builder, owner, now, now + seconds * SECOND))


async def renew(store: Store, builder: BuilderId, owner: str, now: datetime) -> bool:
    return await store.write(lambda uow: uow.builders.renew(builder, owner, now, now + 30 * SECOND))


async def holds(store: Store, builder: BuilderId, owner: str, now: datetime) -> bool:
    def look(uow: UnitOfWork) -> bool:
        stored, held = uow.builders.get(builder), uow.builders.get_held(builder, owner, now)
        assert held is None or held == stored
        return held is not None

    return await store.write(look)


async def due(store: Store, now: datetime, limit: int = 10) -> list[BuilderId]:
    return list(await store.read(lambda uow: uow.builders.due(now, limit)))


async def make_due(store: Store, builder: BuilderId, at: datetime) -> None:
    await store.write(lambda uow: uow.builders.make_due(builder, at))


async def release(store: Store, builder: BuilderId, owner: str, due_at: datetime | None) -> None:
    await store.write(lambda uow: uow.builders.release(builder, owner, due_at))


async def record(store: Store, event: Event) -> Event:
    return await store.write(lambda uow: uow.events.add(event))


async def event_ids(store: Store, builder: BuilderId, **page: int) -> list[int]:
    events = await store.read(lambda uow: uow.events.of_builder(builder, **page))
    return [event.id for event in events]
