"""Sessions of the web pages and their one-time links as every store keeps them."""

from __future__ import annotations

from dataclasses import replace

from tests.contract.store.samples import NOW, SECOND, TENANT, add, make_token

from builderd.domain.ids import new_id
from builderd.domain.tokens import Session, SessionId, SignInLink
from builderd.store import Store

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
