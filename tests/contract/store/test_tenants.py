"""Tenants, their tokens and their credentials as every store keeps them, and when spending is checked."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from functools import partial

import pytest
from tests.contract.store.samples import NOW, OTHER_TENANT, SECOND, TENANT, add, make_builder, make_token
from tests.stores import open_store

from builderd.core.ids import BuilderId, TenantId, TokenId, new_id
from builderd.credentials.model import Credential
from builderd.database.unit_of_work import Store, UnitOfWork
from builderd.executions.model import Grant
from builderd.sessions import revocations
from builderd.sessions.revocations import Revocation
from builderd.tokens.model import NO_CALLS, CallHours, Scope, Tenant
from builderd.tokens.service import require_unrevoked


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


EVERYTHING = make_token(
    name="deploy \N{ROCKET}",
    scopes=frozenset(Scope),
    expires_at=NOW + SECOND,
    revoked_at=NOW,
    last_used_at=NOW,
    made_by=TokenId(new_id()),
)


async def test_every_field_of_a_token_is_stored(store: Store) -> None:
    await add(store, EVERYTHING)
    assert await store.read(lambda uow: uow.tokens.by_secret_hash(EVERYTHING.secret_hash)) == EVERYTHING


async def test_a_tenant_lists_its_own_tokens_oldest_first(store: Store) -> None:
    old = make_token(secret_hash="1" * 64)
    new = make_token(secret_hash="2" * 64, created_at=NOW + SECOND)
    foreign = make_token(secret_hash="3" * 64, tenant_id=OTHER_TENANT.id)
    await add(store, OTHER_TENANT)
    await add(store, new, foreign, old)
    assert await store.read(lambda uow: uow.tokens.list(TENANT.id)) == [old, new]


async def test_use_is_recorded_only_on_its_token(store: Store) -> None:
    one, other = make_token(secret_hash="1" * 64), make_token(secret_hash="2" * 64)
    await add(store, one, other)
    await store.write(lambda uow: uow.tokens.touch(one.id, NOW))
    used = {token.id: token.last_used_at for token in await store.read(lambda uow: uow.tokens.list(TENANT.id))}
    assert used == {one.id: NOW, other.id: None}


async def test_calls_are_added_by_hour(store: Store) -> None:
    one, other = make_token(secret_hash="1" * 64), make_token(secret_hash="2" * 64)
    await add(store, one, other)
    later = NOW + 3_600 * SECOND
    # The second use is recorded with calls that were made in the hour before.
    uses = ((NOW, NO_CALLS.add(1, NOW)), (NOW, NO_CALLS), (later, NO_CALLS.add(2, NOW).add(2, later)))
    for at, calls in uses:
        await store.write(lambda uow: uow.tokens.touch(one.id, at, calls))  # noqa: B023
    found = {token.id: token for token in await store.read(lambda uow: uow.tokens.list(TENANT.id))}
    assert found[one.id].calls.counts == (3, 2)
    assert found[one.id].calls.of_day(later) == 5
    assert found[other.id].calls == CallHours()


async def test_a_revoked_token_keeps_the_time_of_its_first_revocation(store: Store) -> None:
    token = make_token()
    await add(store, token)
    await store.write(lambda uow: uow.tokens.revoke([token.id], NOW))
    await store.write(lambda uow: uow.tokens.revoke([token.id], NOW + SECOND))
    found = await store.read(lambda uow: uow.tokens.by_secret_hash(token.secret_hash))
    assert found is not None
    assert found.revoked_at == NOW
    assert not found.is_valid(NOW)


async def test_a_revocation_waits_for_what_the_token_is_making(store: Store) -> None:
    builder, token = make_builder(), make_token()
    await add(store, token, builder)
    grant = Grant(new_id(), TENANT.id, builder.id, "a" * 64, "token ci", NOW, NOW + SECOND, token_id=token.id)
    locked, revoked = threading.Event(), threading.Event()

    def make(uow: UnitOfWork) -> None:
        require_unrevoked(uow, token.id)
        locked.set()
        # It is set only where the lock does not hold: the revocation is over then, and has found no grant.
        revoked.wait(1)
        uow.ssh_grants.add(grant)

    def revoke(uow: UnitOfWork) -> Revocation:
        done = revocations.revoke(uow, TENANT.id, token.id, "me", "", NOW)
        revoked.set()
        return done

    making = asyncio.create_task(store.write(make))
    await asyncio.to_thread(locked.wait)
    done = await store.write(revoke)
    await making
    assert [one.id for one in done.ended] == [grant.id]


ZOHO = Credential(TENANT.id, "zoho", ("API_KEY", "A"), bytes(range(256)), created_at=NOW, updated_at=NOW)
USED = replace(ZOHO, sealed=b"\0new", updated_at=NOW + SECOND, last_used_at=NOW, last_used_by=BuilderId(new_id()))


async def test_every_field_is_kept(store: Store) -> None:
    await store.write(lambda uow: uow.credentials.add(ZOHO))
    assert await store.read(lambda uow: uow.credentials.get(TENANT.id, "zoho")) == ZOHO
    await store.write(lambda uow: uow.credentials.save(USED))
    assert await store.read(lambda uow: uow.credentials.get(TENANT.id, "zoho")) == USED


async def test_recording_a_use_writes_only_that(store: Store) -> None:
    """A start may be under way while the secret is changed."""
    by = BuilderId(new_id())
    await store.write(lambda uow: uow.credentials.add(USED))
    await store.write(lambda uow: uow.credentials.touch(TENANT.id, "zoho", NOW + SECOND, by))
    touched = replace(USED, last_used_at=NOW + SECOND, last_used_by=by)
    assert await store.read(lambda uow: uow.credentials.get(TENANT.id, "zoho")) == touched
    await store.write(lambda uow: uow.credentials.touch(TENANT.id, "gone", NOW, by))


async def test_resealing_loses_no_concurrent_change(shared_url: str) -> None:
    changed = replace(ZOHO, sealed=b"changed")
    read, waits = threading.Event(), threading.Event()

    def reseal(uow: UnitOfWork) -> None:
        (found,) = uow.credentials.all()
        read.set()
        waits.wait(0.3)  # the other is held by the database, and cannot say so
        uow.credentials.save(replace(found, sealed=b"sealed anew"))

    def change(uow: UnitOfWork) -> None:
        uow.credentials.save(changed)
        waits.set()

    async with open_store(shared_url) as one, open_store(shared_url) as other:
        await one.write(lambda uow: uow.tenants.add(TENANT))
        await one.write(lambda uow: uow.credentials.add(ZOHO))
        sealing = asyncio.create_task(one.write(reseal))
        await asyncio.to_thread(read.wait)
        await asyncio.gather(sealing, other.write(change))
        assert await one.read(lambda uow: uow.credentials.get(TENANT.id, "zoho")) == changed
