"""Tenants in the store, and when their spending is checked."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from decimal import Decimal
from functools import partial

import pytest
from tests.contract.store.samples import NOW, OTHER_TENANT, SECOND, TENANT, add

from builderd.domain.ids import TenantId, new_id
from builderd.domain.tokens import Tenant
from builderd.store import Store, UnitOfWork


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


def make_due(uow: UnitOfWork, seconds: int) -> None:
    uow.tenants.make_spending_due(TENANT.id, NOW + seconds * SECOND)


async def test_new_cap_resets_its_warning(store: Store) -> None:
    await store.write(lambda uow: uow.tenants.cap(TENANT.id, Decimal("20.00")))
    await store.write(lambda uow: uow.tenants.warned(TENANT.id, NOW))
    found = await store.read(lambda uow: uow.tenants.get(TENANT.id))
    assert found is not None
    assert (found.spending_cap, found.cap_warned_at) == (Decimal("20.00"), NOW)
    await store.write(lambda uow: uow.tenants.cap(TENANT.id, None))
    found = await store.read(lambda uow: uow.tenants.by_name(TENANT.name))
    assert found is not None
    assert (found.spending_cap, found.cap_warned_at) == (None, None)


async def test_tenants_are_due_earliest_first(store: Store) -> None:
    await add(store, OTHER_TENANT)
    assert await store.read(lambda uow: uow.tenants.spending_due(NOW)) == []
    await store.write(lambda uow: uow.tenants.make_spending_due(TENANT.id, NOW + SECOND))
    await store.write(lambda uow: uow.tenants.make_spending_due(OTHER_TENANT.id, NOW))
    assert await store.read(lambda uow: uow.tenants.spending_due(NOW)) == [(OTHER_TENANT.id, NOW)]
    both = [(OTHER_TENANT.id, NOW), (TENANT.id, NOW + SECOND)]
    assert await store.read(lambda uow: uow.tenants.spending_due(NOW + SECOND)) == both


async def test_later_due_time_does_not_replace_an_earlier_one(store: Store) -> None:
    for seconds in (5, 1, 3):
        await store.write(partial(make_due, seconds=seconds))
    assert await store.read(lambda uow: uow.tenants.spending_due(NOW + 9 * SECOND)) == [(TENANT.id, NOW + SECOND)]


async def test_change_during_a_check_makes_the_tenant_due_again(store: Store) -> None:
    await store.write(lambda uow: uow.tenants.make_spending_due(TENANT.id, NOW))
    lease = NOW + 10 * SECOND
    assert await store.write(lambda uow: uow.tenants.postpone_spending(TENANT.id, NOW, lease))
    assert not await store.write(lambda uow: uow.tenants.postpone_spending(TENANT.id, NOW, lease))
    await store.write(lambda uow: uow.tenants.make_spending_due(TENANT.id, NOW + SECOND))
    assert not await store.write(lambda uow: uow.tenants.postpone_spending(TENANT.id, lease, None))
    assert await store.read(lambda uow: uow.tenants.spending_due(NOW + SECOND)) == [(TENANT.id, NOW + SECOND)]


async def test_tenant_without_next_check_is_not_due(store: Store) -> None:
    await store.write(lambda uow: uow.tenants.make_spending_due(TENANT.id, NOW))
    assert await store.write(lambda uow: uow.tenants.postpone_spending(TENANT.id, NOW, None))
    assert await store.read(lambda uow: uow.tenants.spending_due(NOW + 999 * SECOND)) == []
