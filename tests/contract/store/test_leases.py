"""Leases are kept until they are deleted."""

from __future__ import annotations

from dataclasses import replace

from tests.contract.store.samples import NOW, SECOND, add_builder

from builderd.domain.leases import Lease, LeaseId
from builderd.ports.store import Store, UnitOfWork


async def test_leases_are_listed_the_oldest_first_changed_and_deleted(store: Store) -> None:
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
