"""Sessions begin with a token or a link, last while they are used, and end with their token."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
from tests.application import World
from tests.contract.store.samples import NOW

from builderd.builders.service import Caller
from builderd.core.errors import NotFound, Unauthenticated
from builderd.events.model import WebhookStatus
from builderd.sessions import service as sessions
from builderd.tokens import service as tokens
from builderd.tokens.model import IDLE, LINK_SPAN, MAX_AGE, Identity, Scope, Session, Token
from builderd.webhooks import service as webhooks


async def sign_in(world: World) -> tuple[Token, Session, str]:
    now = world.clock.now()

    def begin(uow: object) -> tuple[Token, Session, str]:
        token, secret = tokens.create(uow, "acme", "laptop", now, scopes=[Scope.WRITE])  # type: ignore[arg-type]
        return token, *sessions.sign_in(uow, secret, "Firefox", now)  # type: ignore[arg-type]

    return await world.application.store.write(begin)


async def find(world: World, secret: str) -> tuple[Session, Token]:
    return await world.read(lambda uow: sessions.authenticate(uow, secret, world.clock.now()))


async def test_a_session_is_known_by_its_secret_which_is_not_stored(world: World) -> None:
    token, session, secret = await sign_in(world)
    assert await find(world, secret) == (session, token)
    assert secret not in repr(session)
    with pytest.raises(Unauthenticated):
        await find(world, token.secret_hash)


async def test_a_session_ends_without_use_and_at_its_age(world: World) -> None:
    _, session, secret = await sign_in(world)
    world.clock.move(IDLE.total_seconds() - 1)
    await find(world, secret)
    world.clock.move(1)
    with pytest.raises(Unauthenticated, match="sign in again"):
        await find(world, secret)
    assert not session.is_valid(session.created_at + MAX_AGE)


async def test_a_session_ends_itself_and_its_siblings_but_no_stranger(world: World) -> None:
    _, session, secret = await sign_in(world)
    _, other, other_secret = await sign_in(world)
    with pytest.raises(NotFound):
        await world.application.store.write(lambda uow: sessions.end(uow, session, other.id))
    await world.application.store.write(lambda uow: sessions.end_all(uow, session))
    with pytest.raises(Unauthenticated):
        await find(world, secret)
    await find(world, other_secret)


async def test_a_link_signs_in_once_within_its_time(world: World) -> None:
    now = world.clock.now()
    store = world.application.store
    codes = [await store.write(lambda uow: sessions.make_link(uow, "acme", {Scope.READ}, now)) for _ in range(2)]
    session, secret = await store.write(lambda uow: sessions.spend_link(uow, codes[0], "Firefox", now))
    _, token = await find(world, secret)
    assert (token.name, token.scopes) == (sessions.LINK_TOKEN, frozenset({Scope.READ}))
    with pytest.raises(Unauthenticated, match="unknown, spent or older"):
        await store.write(lambda uow: sessions.spend_link(uow, codes[0], "Firefox", now))
    later = now + LINK_SPAN
    with pytest.raises(Unauthenticated):
        await store.write(lambda uow: sessions.spend_link(uow, codes[1], "Firefox", later))
    # Both links are of one token, so one revocation ends the sessions of all.
    assert len(await world.read(lambda uow: tokens.list_of(uow, "acme"))) == 1
    assert session.token_id == token.id


def test_the_operators_scope_is_implied_by_none_and_implies_none() -> None:
    token = Token(None, None, "", "", frozenset({Scope.ADMIN}), None)  # type: ignore[arg-type]
    assert not token.allows(Scope.OPERATOR)
    operator = Token(None, None, "", "", frozenset({Scope.OPERATOR}), None)  # type: ignore[arg-type]
    assert [scope for scope in Scope if operator.allows(scope)] == [Scope.OPERATOR]


def test_a_use_is_recorded_once_a_minute() -> None:
    session = Session(None, None, None, "", "", *[NOW] * 2)  # type: ignore[arg-type]
    assert not sessions.needs_touch(session, NOW + timedelta(seconds=59))
    assert sessions.needs_touch(session, NOW + timedelta(seconds=60))


async def test_a_sign_in_with_other_scopes_ends_what_the_person_made(world: World) -> None:
    store, now = world.application.store, world.clock.now()
    person = Identity("alice", "acme", frozenset({Scope.WRITE}))
    session, _ = await store.write(lambda uow: sessions.sign_in_as(uow, person, "Firefox", now))
    token = await world.read(lambda uow: uow.tokens.get(session.token_id))
    assert token is not None
    caller, url = Caller.of(token), "https://example.com"
    hook, _ = await store.write(lambda uow: webhooks.create(uow, world.application, caller, url, ["*"], None, now))
    assert hook.expires_at == token.expires_at
    await store.write(lambda uow: sessions.sign_in_as(uow, person, "Firefox", now))
    assert (await world.read(lambda uow: webhooks.get(uow, token.tenant_id, hook.id))).status is WebhookStatus.ACTIVE
    less = replace(person, scopes=frozenset({Scope.READ}))
    await store.write(lambda uow: sessions.sign_in_as(uow, less, "Firefox", now))
    ended = await world.read(lambda uow: webhooks.get(uow, token.tenant_id, hook.id))
    assert (ended.status, ended.status_reason) == (
        WebhookStatus.DISABLED,
        f"its token {token.name} ended: {token.name} signed in with other scopes",
    )
