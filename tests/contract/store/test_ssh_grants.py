"""SSH grants as every store keeps them."""

from __future__ import annotations

from dataclasses import replace

from tests.contract.store.samples import NOW, SECOND, TENANT, add, make_builder

from builderd.domain.ids import TokenId, new_id
from builderd.domain.processes import Grant
from builderd.store import Store

BUILDER = make_builder()
GRANT = Grant(new_id(), TENANT.id, BUILDER.id, "a" * 64, "token ci", NOW, NOW + 60 * SECOND, token_id=TokenId("t"))


async def test_every_field_is_stored_and_a_use_recorded(store: Store) -> None:
    await add(store, BUILDER)
    await store.write(lambda uow: uow.ssh_grants.add(GRANT))
    assert await store.read(lambda uow: uow.ssh_grants.by_secret_hash("a" * 64)) == GRANT
    await store.write(lambda uow: uow.ssh_grants.touch(GRANT.id, NOW + SECOND))
    assert await store.read(lambda uow: uow.ssh_grants.get(GRANT.id)) == replace(GRANT, last_used_at=NOW + SECOND)
    assert await store.read(lambda uow: uow.ssh_grants.by_secret_hash("b" * 64)) is None


async def test_revoked_and_expired_grants_are_invalid(store: Store) -> None:
    await add(store, BUILDER)
    later = replace(GRANT, id=new_id(), secret_hash="c" * 64, expires_at=NOW + 3600 * SECOND)
    for one in (GRANT, later):
        await store.write(lambda uow, one=one: uow.ssh_grants.add(one))  # type: ignore[misc]
    assert await store.read(lambda uow: len(uow.ssh_grants.valid_of(BUILDER.id, NOW))) == 2
    assert await store.read(lambda uow: uow.ssh_grants.valid_of(BUILDER.id, GRANT.expires_at)) == [later]
    for at in (NOW, NOW + SECOND):
        await store.write(lambda uow, at=at: uow.ssh_grants.revoke(later.id, at))  # type: ignore[misc]
    assert await store.read(lambda uow: uow.ssh_grants.valid_of(BUILDER.id, NOW)) == [GRANT]
    assert await store.read(lambda uow: uow.ssh_grants.get(later.id)) == replace(later, revoked_at=NOW)


async def test_valid_grants_of_tokens_are_revoked_at_once(store: Store) -> None:
    await add(store, BUILDER)
    foreign = replace(GRANT, id=new_id(), secret_hash="b" * 64, token_id=TokenId("u"))
    unknown = replace(GRANT, id=new_id(), secret_hash="c" * 64, token_id=None)
    over = replace(GRANT, id=new_id(), secret_hash="d" * 64, expires_at=NOW)
    for one in (GRANT, foreign, unknown, over):
        await store.write(lambda uow, one=one: uow.ssh_grants.add(one))  # type: ignore[misc]
    made_by = [TokenId("t"), TokenId("v")]
    ended = await store.write(lambda uow: uow.ssh_grants.revoke_of(made_by, NOW))
    assert ended == [replace(GRANT, revoked_at=NOW)]
    assert await store.write(lambda uow: uow.ssh_grants.revoke_of(made_by, NOW)) == []
    assert {one.id for one in await store.read(lambda uow: uow.ssh_grants.valid_of(BUILDER.id, NOW))} == {
        foreign.id,
        unknown.id,
    }


async def test_old_grants_are_deleted(store: Store) -> None:
    await add(store, BUILDER)
    await store.write(lambda uow: uow.ssh_grants.add(GRANT))
    assert await store.write(lambda uow: uow.ssh_grants.expire(GRANT.expires_at)) == 0
    assert await store.write(lambda uow: uow.ssh_grants.expire(GRANT.expires_at + SECOND)) == 1
