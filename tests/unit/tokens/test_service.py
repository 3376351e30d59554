"""Tokens are made by the operator, and known by their secret alone."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
from tests.application import World

from builderd.core.errors import Forbidden, Unauthenticated, ValidationFailed
from builderd.database.unit_of_work import UnitOfWork
from builderd.tokens import service as tokens
from builderd.tokens.model import Scope, Token

MINUTE = timedelta(minutes=1)


async def make(world: World, tenant: str = "acme", lifetime: timedelta | None = None) -> tuple[Token, str]:
    now = world.clock.now()
    expires = now + lifetime if lifetime is not None else None
    return await world.application.store.write(
        lambda uow: tokens.create(uow, tenant, "ci", now, scopes=[Scope.WRITE], expires_at=expires)
    )


async def authenticate(world: World, secret: str) -> Token:
    return await world.read(lambda uow: tokens.authenticate(uow, secret, world.clock.now()))


async def test_a_secret_leads_to_its_token(world: World) -> None:
    token, secret = await make(world)
    assert await authenticate(world, secret) == token
    assert token.tenant_id == world.caller.tenant_id
    assert token.allows(Scope.READ)


@pytest.mark.parametrize("tenant", ["", "A", "a b", "-a", "a" * 64, "../x", "a\n"])
async def test_a_tenant_has_a_plain_name(world: World, tenant: str) -> None:
    with pytest.raises(ValidationFailed) as refused:
        await make(world, tenant)
    assert list(refused.value.errors) == ["tenant"]


@pytest.mark.parametrize("lifetime", [timedelta(0), -MINUTE])
async def test_a_token_that_has_expired_already_is_refused(world: World, lifetime: timedelta) -> None:
    with pytest.raises(ValidationFailed) as refused:
        await make(world, lifetime=lifetime)
    assert list(refused.value.errors) == ["expires"]


async def test_an_expired_and_a_revoked_one_are_refused_alike(world: World) -> None:
    _, brief = await make(world, lifetime=MINUTE)
    token, revoked = await make(world)
    await world.application.store.write(lambda uow: uow.tokens.revoke([token.id], world.clock.now()))
    world.clock.move(60)
    messages = set()
    for secret in (brief, revoked, "bd_unknown"):
        with pytest.raises(Unauthenticated) as refused:
            await authenticate(world, secret)
        messages.add(refused.value.message)
    assert len(messages) == 1


async def test_the_last_use_is_written_down_once_a_minute(world: World) -> None:
    token, _ = await make(world)
    now = world.clock.now()
    assert tokens.needs_touch(token, now)
    used = replace(token, last_used_at=now)
    assert not tokens.needs_touch(used, now + MINUTE - timedelta(seconds=1))
    assert tokens.needs_touch(used, now + MINUTE)


async def test_the_scope_operator_is_not_derived_not_even_by_an_operator(world: World) -> None:
    now = world.clock.now()

    def derive(uow: UnitOfWork) -> None:
        own, _ = tokens.create(uow, "acme", "ci", now, scopes=[Scope.ADMIN, Scope.OPERATOR])
        tokens.derive(uow, own, "more", now, scopes=[Scope.OPERATOR])

    with pytest.raises(Forbidden, match="machine alone"):
        await world.application.store.write(derive)
