"""Events as every store keeps them."""

from __future__ import annotations

from dataclasses import replace

from tests.contract.store.samples import NOW, OTHER_TENANT, SECOND, TENANT, add, add_builder, make_event, record

from builderd.database.unit_of_work import Store
from builderd.events.store import EventQuery


async def test_every_field_of_an_event_is_stored_with_an_id(store: Store) -> None:
    builder = await add_builder(store)
    details = {"from": "creating", "to": None, "seconds": 1.25, "list": [1, {"a": "\N{SNOWMAN}\0"}], "ok": True}
    event = make_event(builder.id, details=details)
    stored = await record(store, event)
    assert stored.id > 0
    assert stored == replace(event, id=stored.id)
    assert await store.read(lambda uow: uow.events.of_builder(builder.id)) == [stored]


# Of a tenant


async def page(store: Store, query: EventQuery, number: int = 1, per_page: int = 10) -> tuple[list[int], int]:
    found, total = await store.read(lambda uow: uow.events.page(TENANT.id, query, page=number, per_page=per_page))
    return [event.id for event in found], total


async def following(store: Store, query: EventQuery, after: int = 0, limit: int = 10) -> list[int]:
    found = await store.read(lambda uow: uow.events.following(TENANT.id, query, after=after, limit=limit))
    return [event.id for event in found]


async def test_a_tenants_events_are_paged_newest_first_and_followed_oldest_first(store: Store) -> None:
    builder = await add_builder(store)
    ids = [(await record(store, make_event(builder.id))).id for _ in range(5)]
    assert await page(store, EventQuery()) == (ids[::-1], 5)
    assert await page(store, EventQuery(), number=2, per_page=2) == ([ids[2], ids[1]], 5)
    assert await page(store, EventQuery(), number=4, per_page=2) == ([], 5)
    assert await following(store, EventQuery(), after=ids[0], limit=3) == ids[1:4]
    assert await store.read(lambda uow: uow.events.last_id(TENANT.id)) == ids[-1]


async def test_events_of_another_tenant_are_not_listed(store: Store) -> None:
    await add(store, OTHER_TENANT)
    foreign = await add_builder(store, tenant_id=OTHER_TENANT.id)
    await record(store, make_event(foreign.id, tenant_id=OTHER_TENANT.id))
    for query in (EventQuery(), EventQuery(builder=foreign.id), EventQuery(types=["*"])):
        assert await page(store, query) == ([], 0)
        assert await following(store, query) == []
    assert await store.read(lambda uow: uow.events.last_id(TENANT.id)) == 0


async def test_events_are_filtered_by_builder_type_and_time(store: Store) -> None:
    one, two = await add_builder(store), await add_builder(store)
    kinds = ("builder.status", "builder.deleted", "builders.x", "stage.started", "builderXstatus")
    ids = [(await record(store, make_event(one.id, type=kind))).id for kind in kinds]
    late = (await record(store, make_event(two.id, type="webhook.disabled", time=NOW + 2 * SECOND))).id

    async def found(query: EventQuery) -> list[int]:
        assert (await page(store, query))[0] == (await following(store, query))[::-1]
        return await following(store, query)

    assert await found(EventQuery(builder=two.id)) == [late]
    assert await found(EventQuery(types=["builder.status"])) == [ids[0]]
    assert await found(EventQuery(types=["builder.*"])) == ids[:2]
    assert await found(EventQuery(types=["builder.deleted", "stage.*"])) == [ids[1], ids[3]]
    assert await found(EventQuery(types=["stage.started", "*"])) == [*ids, late]
    assert await found(EventQuery(since=NOW + SECOND)) == [late]
    assert await found(EventQuery(until=NOW)) == []
    assert await found(EventQuery(since=NOW, until=NOW + SECOND)) == ids


async def test_oldest_events_expire_in_batches_and_ids_are_not_reused(store: Store) -> None:
    builder = await add_builder(store)
    ids = [(await record(store, make_event(builder.id, time=NOW + n * SECOND))).id for n in range(5)]

    async def expire(seconds: float) -> int:
        return await store.write(lambda uow: uow.events.expire(NOW + seconds * SECOND, 2))

    assert [await expire(3), await expire(3), await expire(3)] == [2, 1, 0]
    assert (await page(store, EventQuery()))[0] == [ids[4], ids[3]]
    assert [await expire(99), await expire(99)] == [2, 0]
    assert (await record(store, make_event(builder.id))).id > ids[-1]
