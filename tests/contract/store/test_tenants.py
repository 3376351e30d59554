"""Tenants as every store keeps them."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest
from tests.contract.store.samples import NOW, OTHER_TENANT, TENANT, add

from builderd.domain.ids import TenantId, new_id
from builderd.domain.tokens import Tenant
from builderd.store import Store


async def test_a_tenant_is_found_by_id_and_by_name(store: Store) -> None:
    assert await store.read(lambda uow: uow.tenants.get(TENANT.id)) == TENANT
    assert await store.read(lambda uow: uow.tenants.by_name("acme")) == TENANT


async def test_an_unknown_tenant_is_none(store: Store) -> None:
    assert await store.read(lambda uow: uow.tenants.get(TenantId(new_id()))) is None
    assert await store.read(lambda uow: uow.tenants.by_name("nobody")) is None


async def test_two_tenants_cannot_have_one_name(store: Store) -> None:
    with pytest.raises(Exception, match=r"(?i)unique"):
        await add(store, Tenant(TenantId(new_id()), TENANT.name, NOW))


async def test_time_is_returned_in_utc_with_microseconds(store: Store) -> None:
    elsewhere = NOW.astimezone(timezone(timedelta(hours=-7)))
    await add(store, Tenant(OTHER_TENANT.id, "zeta", elsewhere))
    tenant = await store.read(lambda uow: uow.tenants.get(OTHER_TENANT.id))
    assert tenant is not None
    assert tenant.created_at == NOW
    assert tenant.created_at.utcoffset() == timedelta(0)


async def test_a_time_without_a_zone_is_refused(store: Store) -> None:
    naive = datetime(2026, 1, 31)
    with pytest.raises(Exception, match="no time zone"):
        await add(store, Tenant(TenantId(new_id()), "naive", naive))
