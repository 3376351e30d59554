"""Tokens as every store keeps them."""

from __future__ import annotations

import asyncio
import threading

from tests.contract.store.samples import NOW, OTHER_TENANT, SECOND, TENANT, add, make_builder, make_token

from builderd.domain.ids import TokenId, new_id
from builderd.domain.processes import Grant
from builderd.domain.tokens import NO_CALLS, CallHours, Scope
from builderd.services import revocations
from builderd.services.revocations import Revocation
from builderd.services.tokens import require_unrevoked
from builderd.store import Store, UnitOfWork

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
