"""Services of a cluster in the store, seen by the database's clock."""

from __future__ import annotations

from dataclasses import replace

from builderd.domain.cluster_services import ClusterService, SeenService
from builderd.store import Store

ONE = ClusterService("1" * 16, "one.example", "/srv/one", "1.0", "disks", "aa", "/srv/one/vault.key", "SHA256:x", "/k")
TWO = replace(
    ONE,
    id="2" * 16,
    host_name="two.example",
    vault_key="",
    vault_key_file="",
)


async def seen(store: Store) -> dict[str, SeenService]:
    return {one.service.id: one for one in await store.read(lambda uow: uow.services.list())}


async def test_announced_services_are_listed_with_their_age(store: Store) -> None:
    assert await seen(store) == {}
    for one in (ONE, TWO):
        await store.write(lambda uow, one=one: uow.services.announce(one))  # type: ignore[misc]
    found = await seen(store)
    assert [one.service for one in found.values()] == [ONE, TWO]
    assert all(0 <= one.age < 60 and one.known_in is None for one in found.values())


async def test_new_announcement_replaces_the_earlier_one_and_keeps_what_the_owner_knows(store: Store) -> None:
    await store.write(lambda uow: uow.services.announce(ONE))
    await store.write(lambda uow: uow.services.set_known([ONE.id], 7))
    upgraded = replace(ONE, version="1.1")
    await store.write(lambda uow: uow.services.announce(upgraded))
    found = (await seen(store))[ONE.id]
    assert (found.service, found.known_in) == (upgraded, 7)


async def test_owner_knows_exactly_the_services_that_it_named_last(store: Store) -> None:
    for one in (ONE, TWO):
        await store.write(lambda uow, one=one: uow.services.announce(one))  # type: ignore[misc]
    for ids, term in (([ONE.id], 1), ([TWO.id], 2), ([], 2)):
        await store.write(lambda uow, ids=ids, term=term: uow.services.set_known(ids, term))  # type: ignore[misc]
        assert {name: one.known_in for name, one in (await seen(store)).items() if one.known_in} == dict.fromkeys(
            ids, term
        )


async def test_removed_service_is_gone(store: Store) -> None:
    await store.write(lambda uow: uow.services.announce(ONE))
    for _ in range(2):
        await store.write(lambda uow: uow.services.remove(ONE.id))
    assert await seen(store) == {}
