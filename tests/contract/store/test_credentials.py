"""Credentials as every store keeps them."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.contract.store.samples import NOW, OTHER_TENANT, SECOND, TENANT

from builderd.domain.credentials import Credential
from builderd.domain.ids import BuilderId, new_id
from builderd.ports.store import Store

ZOHO = Credential(TENANT.id, "zoho", ("API_KEY", "A"), bytes(range(256)), created_at=NOW, updated_at=NOW)
USED = replace(ZOHO, sealed=b"\0new", updated_at=NOW + SECOND, last_used_at=NOW, last_used_by=BuilderId(new_id()))


async def test_every_field_is_kept(store: Store) -> None:
    await store.write(lambda uow: uow.credentials.add(ZOHO))
    assert await store.read(lambda uow: uow.credentials.get(TENANT.id, "zoho")) == ZOHO
    await store.write(lambda uow: uow.credentials.save(USED))
    assert await store.read(lambda uow: uow.credentials.get(TENANT.id, "zoho")) == USED


async def test_they_are_listed_by_name_and_never_for_another_tenant(store: Store) -> None:
    foreign = replace(ZOHO, tenant_id=OTHER_TENANT.id)
    other = replace(ZOHO, name="aws-1")
    await store.write(lambda uow: uow.tenants.add(OTHER_TENANT))
    for one in (ZOHO, foreign, other):
        await store.write(lambda uow, one=one: uow.credentials.add(one))  # type: ignore[misc]

    assert await store.read(lambda uow: uow.credentials.list(TENANT.id)) == [other, ZOHO]
    assert len(await store.read(lambda uow: uow.credentials.all())) == 3


async def test_deleting_is_idempotent_and_keeps_the_others(store: Store) -> None:
    other = replace(ZOHO, name="other")
    await store.write(lambda uow: uow.credentials.add(ZOHO))
    await store.write(lambda uow: uow.credentials.add(other))
    for _ in range(2):
        await store.write(lambda uow: uow.credentials.delete(TENANT.id, "zoho"))
    assert await store.read(lambda uow: uow.credentials.list(TENANT.id)) == [other]


async def test_saving_what_was_deleted_is_told(store: Store) -> None:
    with pytest.raises(LookupError, match="zoho"):
        await store.write(lambda uow: uow.credentials.save(ZOHO))
