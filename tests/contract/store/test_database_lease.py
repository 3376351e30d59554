"""The lease on the database, and the services of a cluster, by the database's clock."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import replace
from datetime import timedelta

import pytest
from sqlalchemy import update
from tests.contract.store.samples import NOW, OTHER_TENANT, TENANT, add, add_builder, claim, holds
from tests.stores import open_store

from builderd.core.ids import TenantId
from builderd.core.members import ClusterService, DatabaseLease, Instance, LeaseLost, SeenService
from builderd.database.lease import database_lease
from builderd.database.unit_of_work import Store, UnitOfWork
from builderd.tokens.model import Tenant

ONE = Instance("host-1", "one.example", "/srv/one", "first", "boot-1")
TWO = Instance("host-2", "two.example", "/srv/two", "second", "boot-2")


async def take(store: Store, instance: Instance, seen: DatabaseLease | None = None) -> DatabaseLease | None:
    return await store.write(lambda uow: uow.database_lease.take(instance, seen))


async def taken(store: Store, instance: Instance, seen: DatabaseLease | None = None) -> DatabaseLease:
    lease = await take(store, instance, seen)
    assert lease is not None
    return lease


async def get(store: Store) -> DatabaseLease | None:
    return await store.read(lambda uow: uow.database_lease.get())


async def test_unowned_database_is_taken_and_shows_its_owner(store: Store) -> None:
    assert await get(store) is None
    lease = await taken(store, ONE)
    assert (lease.instance, lease.term, lease.released) == (ONE, 1, False)
    found = await get(store)
    assert found is not None
    assert replace(found, age=0) == replace(lease, age=0)
    assert 0 <= found.age < 60


async def test_take_over_fails_if_the_lease_changed(store: Store) -> None:
    first = await taken(store, ONE)
    assert await take(store, TWO) is None, "somebody has it"
    await asyncio.sleep(0.002)  # SQLite's clock has milliseconds
    assert await store.write(lambda uow: uow.database_lease.renew(first.term))
    assert await take(store, TWO, first) is None, "it was renewed since"
    second = await taken(store, TWO, await get(store))
    assert (second.instance, second.term) == (TWO, 2)
    assert not await store.write(lambda uow: uow.database_lease.renew(first.term))
    assert await take(store, ONE, first) is None


async def test_lease_age_is_by_the_clock_of_the_database(store: Store) -> None:
    await taken(store, ONE)
    ago = database_lease.c.renewed_at

    def set_back() -> None:
        with store._database.writing.begin() as connection:
            renewed_at = connection.execute(database_lease.select()).mappings().one()["renewed_at"]
            connection.execute(update(database_lease).values({ago: renewed_at - timedelta(minutes=3)}))

    await asyncio.get_running_loop().run_in_executor(store._writers, set_back)
    lease = await get(store)
    assert lease is not None
    assert 180 <= lease.age < 240


async def test_lost_lease_refuses_writes_and_allows_reads(store: Store) -> None:
    first = await taken(store, ONE)
    store.fence(first.term)
    await add(store, OTHER_TENANT)
    second = await taken(store, TWO, await get(store))
    ran = False

    def work(uow: UnitOfWork) -> None:
        nonlocal ran
        ran = True
        uow.tenants.add(Tenant(TenantId("never"), "never", NOW))

    with pytest.raises(LeaseLost):
        await store.write(work)
    with pytest.raises(LeaseLost):
        await store.migrate()
    assert not ran
    assert await store.read(lambda uow: uow.tenants.get(TENANT.id)) == TENANT
    store.fence(second.term)
    await store.write(work)


async def test_take_over_waits_for_open_work_of_the_previous_owner(shared_url: str) -> None:
    begun, let_go, tenant = threading.Event(), threading.Event(), Tenant(TenantId("late"), "late", NOW)

    def tarry(uow: UnitOfWork) -> None:
        begun.set()
        let_go.wait(30)
        uow.tenants.add(tenant)

    async with open_store(shared_url) as one, open_store(shared_url) as two:
        first = await taken(one, ONE)
        one.fence(first.term)
        writing = asyncio.create_task(one.write(tarry))
        await asyncio.to_thread(begun.wait)
        taking = asyncio.create_task(taken(two, TWO, first))
        await asyncio.sleep(0.1)
        assert not taking.done()
        let_go.set()
        await writing
        await taking
        assert await two.read(lambda uow: uow.tenants.get(tenant.id)) == tenant
        with pytest.raises(LeaseLost):
            await one.write(lambda uow: uow.tenants.add(OTHER_TENANT))


async def test_renewal_does_not_wait_for_open_work(shared_url: str) -> None:
    if shared_url.startswith("sqlite"):
        pytest.skip("SQLite has one writer as it is")
    begun, let_go = threading.Event(), threading.Event()

    def tarry(_: UnitOfWork) -> None:
        begun.set()
        let_go.wait(30)

    async with open_store(shared_url) as store:
        first = await taken(store, ONE)
        store.fence(first.term)
        writing = asyncio.create_task(store.write(tarry))
        await asyncio.to_thread(begun.wait)
        assert await store.write(lambda uow: uow.database_lease.renew(first.term))
        assert not writing.done()
        let_go.set()
        await writing


async def test_take_over_moves_live_builders_and_drops_claims(store: Store) -> None:
    builder = await add_builder(store, member="elsewhere")
    await claim(store, builder.id, "elsewhere", NOW)
    await store.write(lambda uow: uow.database_lease.adopt(TWO))
    assert await store.read(lambda uow: uow.builders.get(builder.id)) == replace(builder, member=TWO.member)
    assert await claim(store, builder.id, TWO.identity, NOW)
    await store.write(lambda uow: uow.database_lease.adopt(TWO))
    assert await holds(store, builder.id, TWO.identity, NOW), "its own claims stay"


SERVICE = ClusterService(
    "1" * 16, "one.example", "/srv/one", "1.0", "disks", "aa", "/srv/one/vault.key", "SHA256:x", "/k"
)
OTHER_SERVICE = replace(
    SERVICE,
    id="2" * 16,
    host_name="two.example",
    vault_key="",
    vault_key_file="",
)


async def seen(store: Store) -> dict[str, SeenService]:
    return {one.service.id: one for one in await store.read(lambda uow: uow.services.list())}


async def test_announced_services_are_listed_with_their_age(store: Store) -> None:
    assert await seen(store) == {}
    for one in (SERVICE, OTHER_SERVICE):
        await store.write(lambda uow, one=one: uow.services.announce(one))  # type: ignore[misc]
    found = await seen(store)
    assert [one.service for one in found.values()] == [SERVICE, OTHER_SERVICE]
    assert all(0 <= one.age < 60 and one.known_in is None for one in found.values())


async def test_new_announcement_replaces_the_earlier_one_and_keeps_what_the_owner_knows(store: Store) -> None:
    await store.write(lambda uow: uow.services.announce(SERVICE))
    await store.write(lambda uow: uow.services.set_known([SERVICE.id], 7))
    upgraded = replace(SERVICE, version="1.1")
    await store.write(lambda uow: uow.services.announce(upgraded))
    found = (await seen(store))[SERVICE.id]
    assert (found.service, found.known_in) == (upgraded, 7)


async def test_owner_knows_exactly_the_services_that_it_named_last(store: Store) -> None:
    for one in (SERVICE, OTHER_SERVICE):
        await store.write(lambda uow, one=one: uow.services.announce(one))  # type: ignore[misc]
    for ids, term in (([SERVICE.id], 1), ([OTHER_SERVICE.id], 2), ([], 2)):
        await store.write(lambda uow, ids=ids, term=term: uow.services.set_known(ids, term))  # type: ignore[misc]
        assert {name: one.known_in for name, one in (await seen(store)).items() if one.known_in} == dict.fromkeys(
            ids, term
        )


async def test_removed_service_is_gone(store: Store) -> None:
    await store.write(lambda uow: uow.services.announce(SERVICE))
    for _ in range(2):
        await store.write(lambda uow: uow.services.remove(SERVICE.id))
    assert await seen(store) == {}
