"""Leases and retry keys in the store."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.contract.store.samples import NOW, OTHER_TENANT, SECOND, TENANT, add, add_builder, make_record

from builderd.builders.model import Lease, LeaseId
from builderd.core.errors import Conflict
from builderd.core.ids import BuilderId, new_id
from builderd.database.unit_of_work import Store, UnitOfWork


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


ANSWERED = make_record(
    builder_id=BuilderId(new_id()),
    status=201,
    headers={"location": "/api/v1/builders/1"},
    body={"success": True, "data": {"name": "app", "cost": 0.0}},
)


async def test_every_field_of_a_record_is_stored(store: Store) -> None:
    await add(store, ANSWERED)
    assert await store.read(lambda uow: uow.idempotency.get(TENANT.id, "key-1")) == ANSWERED


async def test_the_answer_is_added_to_the_record(store: Store) -> None:
    record = make_record()
    await add(store, record)
    assert await store.read(lambda uow: uow.idempotency.get(TENANT.id, "key-1")) == record
    await store.write(lambda uow: uow.idempotency.save(ANSWERED))
    assert await store.read(lambda uow: uow.idempotency.get(TENANT.id, "key-1")) == ANSWERED


async def test_a_key_is_used_once_in_a_tenant(store: Store) -> None:
    record = make_record()
    await add(store, record)
    with pytest.raises(Conflict, match="key-1"):
        await add(store, make_record(owner="two"))
    assert await store.read(lambda uow: uow.idempotency.get(TENANT.id, "key-1")) == record


async def test_another_tenant_may_use_the_same_key(store: Store) -> None:
    foreign = make_record(tenant_id=OTHER_TENANT.id)
    await add(store, OTHER_TENANT, make_record())
    await add(store, foreign)
    assert await store.read(lambda uow: uow.idempotency.get(OTHER_TENANT.id, "key-1")) == foreign


async def test_a_deleted_key_can_be_used_again(store: Store) -> None:
    await add(store, make_record())
    await store.write(lambda uow: uow.idempotency.delete(TENANT.id, "key-1"))
    assert await store.read(lambda uow: uow.idempotency.get(TENANT.id, "key-1")) is None
    await add(store, make_record())


async def test_save_of_a_missing_row_is_an_error(store: Store) -> None:
    with pytest.raises(LookupError):
        await store.write(lambda uow: uow.idempotency.save(ANSWERED))


async def test_records_made_before_a_time_expire(store: Store) -> None:
    old = make_record(key="old", created_at=NOW - SECOND)
    await add(store, old, make_record(key="new"))
    assert await store.write(lambda uow: uow.idempotency.expire(NOW)) == 1
    assert await store.write(lambda uow: uow.idempotency.expire(NOW)) == 0
    assert await store.read(lambda uow: uow.idempotency.get(TENANT.id, "old")) is None
    kept = await store.read(lambda uow: uow.idempotency.get(TENANT.id, "new"))
    assert kept == replace(make_record(), key="new")
