"""Events as every store keeps them."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.contract.store.calls import event_ids, record
from tests.contract.store.samples import NOW, SECOND, add_builder, make_event

from builderd.ports.store import Store


async def test_every_field_of_an_event_is_kept_and_it_gets_an_id(store: Store) -> None:
    builder = await add_builder(store)
    details = {"from": "creating", "to": None, "seconds": 1.25, "list": [1, {"a": "\N{SNOWMAN}\0"}], "ok": True}
    event = make_event(builder.id, details=details)
    stored = await record(store, event)
    assert stored.id > 0
    assert stored == replace(event, id=stored.id)
    assert await store.read(lambda uow: uow.events.of_builder(builder.id)) == [stored]


async def test_ids_count_up_over_the_whole_store(store: Store) -> None:
    one, two = await add_builder(store), await add_builder(store)
    stored = [await record(store, make_event(builder.id)) for builder in (one, two, one, two)]
    numbers = [event.id for event in stored]
    assert numbers == sorted(set(numbers))


async def test_a_builders_events_come_by_id_and_not_by_their_time(store: Store) -> None:
    builder, other = await add_builder(store), await add_builder(store)
    first = await record(store, make_event(builder.id, time=NOW + SECOND))
    await record(store, make_event(other.id))
    second = await record(store, make_event(builder.id))
    assert await event_ids(store, builder.id) == [first.id, second.id]


async def test_a_follower_gets_what_came_after_the_last_it_saw(store: Store) -> None:
    builder = await add_builder(store)
    stored = [(await record(store, make_event(builder.id))).id for _ in range(5)]
    assert await event_ids(store, builder.id, after=stored[1]) == stored[2:]
    assert await event_ids(store, builder.id, after=stored[1], limit=2) == stored[2:4]
    assert await event_ids(store, builder.id, after=stored[-1]) == []


async def test_details_that_are_no_json_are_refused(store: Store) -> None:
    builder = await add_builder(store)
    with pytest.raises(Exception, match="JSON"):
        await record(store, make_event(builder.id, details={"seconds": float("nan")}))
    assert await event_ids(store, builder.id) == []
