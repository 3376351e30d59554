"""Leases are kept until they are removed."""

from __future__ import annotations

from dataclasses import replace

from tests.contract.store.samples import NOW, SECOND, add_builder

from builderd.domain.builders import Lease, LeaseId
from builderd.store import Store, UnitOfWork


async def test_leases_are_listed_oldest_first_changed_and_deleted(store: Store) -> None:
    one, other = await add_builder(store), await add_builder(store)
    first = Lease(LeaseId("b"), one.id, "an import", "token ci", NOW, NOW + SECOND)
    second = replace(first, id=LeaseId("a"), created_at=NOW + SECOND, reason="a \0 report")

    def write(uow: UnitOfWork) -> None:
        for lease in (second, first):
            uow.leases.add(lease)

    await store.write(write)
    renewed = replace(first, expires_at=NOW + 10 * SECOND)
    await store.write(lambda uow: uow.leases.save(renewed))
    kept = await store.read(lambda uow: uow.leases.of_builder(one.id))
    assert kept == [renewed, replace(second, reason="a \ufffd report")]
    await store.write(lambda uow: uow.leases.delete(first.id))
    await store.write(lambda uow: uow.leases.delete(first.id))
    assert len(await store.read(lambda uow: uow.leases.of_builder(one.id))) == 1
    assert await store.read(lambda uow: uow.leases.of_builder(other.id)) == []


async def test_only_expired_leases_of_a_builder_are_deleted(store: Store) -> None:
    one, other = await add_builder(store), await add_builder(store)
    over = Lease(LeaseId("a"), one.id, "an import", "token ci", NOW, NOW + SECOND)
    lasts = replace(over, id=LeaseId("b"), expires_at=NOW + 2 * SECOND)
    theirs = replace(over, id=LeaseId("c"), builder_id=other.id)

    def write(uow: UnitOfWork) -> None:
        for lease in (lasts, over, theirs):
            uow.leases.add(lease)

    await store.write(write)
    assert await store.read(lambda uow: uow.leases.of_builder(one.id)) == [over, lasts]
    assert await store.read(lambda uow: uow.leases.active(one.id, NOW + SECOND)) == [lasts]
    await store.write(lambda uow: uow.leases.expire(one.id, NOW + SECOND))
    assert await store.read(lambda uow: uow.leases.of_builder(one.id)) == [lasts]
    await store.write(lambda uow: uow.leases.delete_of(one.id))
    assert await store.read(lambda uow: uow.leases.of_builder(one.id)) == []
    assert await store.read(lambda uow: uow.leases.of_builder(other.id)) == [theirs]
