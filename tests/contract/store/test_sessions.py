"""Sessions, SSH grants and preview links in the store."""

from __future__ import annotations

from dataclasses import replace

from tests.contract.store.samples import NOW, SECOND, TENANT, add, make_builder, make_token

from builderd.core.ids import TokenId, new_id
from builderd.database.unit_of_work import Store
from builderd.executions.model import Grant
from builderd.previews.model import Link
from builderd.tokens.model import Session, SessionId, SignInLink

TOKEN = make_token()
SESSION = Session(SessionId(new_id()), TENANT.id, TOKEN.id, "a" * 64, "Firefox \N{ROCKET}, from ::1", NOW, NOW)
LINK = SignInLink("b" * 64, TOKEN.id, NOW, NOW + 60 * SECOND)


async def test_every_field_of_a_session_is_kept_and_a_use_is_recorded(store: Store) -> None:
    await add(store, TOKEN)
    await store.write(lambda uow: uow.sessions.add(SESSION))
    assert await store.read(lambda uow: uow.sessions.by_secret_hash("a" * 64)) == SESSION
    assert await store.read(lambda uow: uow.sessions.by_secret_hash("c" * 64)) is None
    await store.write(lambda uow: uow.sessions.touch(SESSION.id, NOW + SECOND))
    used = replace(SESSION, last_used_at=NOW + SECOND)
    assert await store.read(lambda uow: uow.sessions.of_token(TOKEN.id)) == [used]


async def test_sessions_end_one_by_one_all_of_a_token_or_by_age(store: Store) -> None:
    await add(store, TOKEN)
    others = [replace(SESSION, id=SessionId(new_id()), secret_hash=letter * 64) for letter in "cde"]
    old = replace(SESSION, last_used_at=NOW - 60 * SECOND)
    for one in (old, *others):
        await store.write(lambda uow, one=one: uow.sessions.add(one))  # type: ignore[misc]
    await store.write(lambda uow: uow.sessions.remove(others[0].id))
    assert await store.write(lambda uow: uow.sessions.expire(NOW - SECOND)) == 1
    assert {one.id for one in await store.read(lambda uow: uow.sessions.of_token(TOKEN.id))} == {
        one.id for one in others[1:]
    }
    assert await store.write(lambda uow: uow.sessions.remove_of(TOKEN.id)) == 2
    assert await store.read(lambda uow: uow.sessions.of_token(TOKEN.id)) == []


async def test_a_link_is_spent_once_and_expires(store: Store) -> None:
    await add(store, TOKEN)
    await store.write(lambda uow: uow.sign_in_links.add(LINK))
    assert await store.read(lambda uow: uow.sign_in_links.get(LINK.code_hash)) == LINK
    assert [await store.write(lambda uow: uow.sign_in_links.spend(LINK.code_hash)) for _ in range(2)] == [True, False]
    await store.write(lambda uow: uow.sign_in_links.add(LINK))
    assert await store.write(lambda uow: uow.sign_in_links.expire(LINK.expires_at)) == 0
    assert await store.write(lambda uow: uow.sign_in_links.expire(LINK.expires_at + SECOND)) == 1


async def test_a_token_is_found_by_its_id(store: Store) -> None:
    await add(store, TOKEN)
    assert await store.read(lambda uow: uow.tokens.get(TOKEN.id)) == TOKEN


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


PREVIEW_LINK = Link(new_id(), TENANT.id, BUILDER.id, "a" * 64, 3000, "token ci", NOW, NOW + SECOND, TokenId("t"))


async def test_valid_links_of_tokens_are_removed_at_once(store: Store) -> None:
    await add(store, BUILDER)
    foreign = replace(PREVIEW_LINK, id=new_id(), secret_hash="b" * 64, token_id=TokenId("u"))
    unknown = replace(PREVIEW_LINK, id=new_id(), secret_hash="c" * 64, token_id=None)
    over = replace(PREVIEW_LINK, id=new_id(), secret_hash="d" * 64, expires_at=NOW)
    for one in (PREVIEW_LINK, foreign, unknown, over):
        await store.write(lambda uow, one=one: uow.preview_links.add(one))  # type: ignore[misc]
    made_by = [TokenId("t"), TokenId("v")]
    assert await store.write(lambda uow: uow.preview_links.remove_of(made_by, NOW)) == [PREVIEW_LINK]
    assert await store.write(lambda uow: uow.preview_links.remove_of(made_by, NOW)) == []
    left = await store.read(lambda uow: uow.preview_links.valid_of(BUILDER.id, NOW))
    assert {one.id for one in left} == {foreign.id, unknown.id}
