"""API tokens over the API: a tenant's own, and never more than the token that makes them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import partial

import httpx
import pytest
from tests.service import Service

from builderd.domain.tokens import MAX_VALID_TOKENS, Scope
from builderd.services import tokens

TOKENS = "/api/v1/tokens"


@pytest.fixture
async def admin(service: Service) -> httpx.AsyncClient:
    return service.client(await service.token("acme", Scope.ADMIN))


async def expiring(service: Service, seconds: int) -> tuple[httpx.AsyncClient, datetime]:
    """An admin whose token expires."""
    now = service.application.clock.now()
    end = now + timedelta(seconds=seconds)
    _, secret = await service.application.store.write(
        lambda uow: tokens.create(uow, "acme", "short", now, scopes=[Scope.ADMIN], expires_at=end)
    )
    return service.client(secret), end


async def test_a_new_token_works_and_its_secret_is_shown_once(service: Service, admin: httpx.AsyncClient) -> None:
    made = await admin.post(TOKENS, json={"name": "ci", "scopes": ["read"]})
    assert made.status_code == 201
    secret = made.json()["data"]["secret"]
    current = (await service.client(secret).get(f"{TOKENS}/current")).json()["data"]
    assert (current["name"], current["scopes"], current["current"]) == ("ci", ["read"], True)
    listed = await admin.get(TOKENS)
    assert secret not in listed.text
    assert "ci" in [token["name"] for token in listed.json()["data"]]


async def test_a_revoked_token_ends_at_once_and_stays_listed(service: Service, admin: httpx.AsyncClient) -> None:
    made = (await admin.post(TOKENS, json={"name": "ci"})).json()["data"]
    revoked = await admin.delete(f"{TOKENS}/{made['id'].upper()}")
    assert revoked.json()["data"]["revoked_at"]
    assert (await service.client(made["secret"]).get(f"{TOKENS}/current")).status_code == 401
    found = {token["id"]: token["revoked_at"] for token in (await admin.get(TOKENS)).json()["data"]}
    assert found[made["id"]]
    assert (await admin.delete(f"{TOKENS}/{made['id']}")).status_code == 200


async def test_only_an_admin_sees_or_changes_tokens(service: Service) -> None:
    for secret in (service.write, service.read):
        client = service.client(secret)
        answers = [
            await client.get(TOKENS),
            await client.post(TOKENS, json={"name": "more", "scopes": ["read"]}),
            await client.delete(f"{TOKENS}/00000000-0000-4000-8000-000000000000"),
        ]
        assert [answer.status_code for answer in answers] == [403] * 3


async def test_tokens_of_another_tenant_are_neither_seen_nor_ended(service: Service, admin: httpx.AsyncClient) -> None:
    stranger = service.client(await service.token("other", Scope.ADMIN))
    theirs = (await stranger.get(TOKENS)).json()["data"][0]
    assert theirs["id"] not in (await admin.get(TOKENS)).text
    missing = await admin.delete(f"{TOKENS}/{theirs['id']}")
    none = await admin.delete(f"{TOKENS}/00000000-0000-4000-8000-000000000000")
    assert (missing.status_code, missing.json()) == (404, none.json())
    assert (await stranger.get(f"{TOKENS}/current")).status_code == 200


async def test_a_token_lasts_no_longer_than_its_maker(service: Service) -> None:
    client, end = await expiring(service, 3600)
    later = (end + timedelta(seconds=1)).isoformat()
    refused = await client.post(TOKENS, json={"name": "longer", "expires_at": later})
    assert refused.status_code == 422
    assert "own" in refused.json()["errors"]["expires_at"][0]
    default = (await client.post(TOKENS, json={"name": "default"})).json()["data"]
    assert datetime.fromisoformat(default["expires_at"]) <= end


async def test_a_token_that_has_ended_is_refused(admin: httpx.AsyncClient) -> None:
    past = datetime(2020, 1, 1, tzinfo=UTC).isoformat()
    refused = await admin.post(TOKENS, json={"name": "ended", "expires_at": past})
    assert refused.json()["errors"] == {"expires_at": ["must lie in the future"]}


async def test_a_token_gets_no_scope_that_its_maker_lacks(service: Service) -> None:
    now = service.application.clock.now()
    store = service.application.store
    own, _ = await store.write(lambda uow: tokens.create(uow, "acme", "w", now, scopes=[Scope.WRITE]))
    for scope in (Scope.ADMIN, Scope.SKIP_GATES):
        with pytest.raises(Exception, match=f"has not the scopes of the new one: {scope}"):
            await store.write(partial(tokens.derive, own=own, name="more", now=now, scopes=[scope]))


async def test_a_tenant_has_a_limit_of_valid_tokens(service: Service, admin: httpx.AsyncClient) -> None:
    now = service.application.clock.now()
    for _ in range(MAX_VALID_TOKENS):
        await service.application.store.write(lambda uow: tokens.create(uow, "acme", "one", now, scopes=[Scope.READ]))
    refused = await admin.post(TOKENS, json={"name": "too many"})
    assert (refused.status_code, refused.json()["code"]) == (429, "quota_exceeded")
    other = service.client(await service.token("other", Scope.ADMIN))
    assert (await other.post(TOKENS, json={"name": "theirs"})).status_code == 201


@pytest.mark.parametrize(
    "body", [{}, {"name": ""}, {"name": "a\nb"}, {"name": "n", "scopes": []}, {"name": "n", "scopes": ["all"]}]
)
async def test_a_wrong_body_is_refused(admin: httpx.AsyncClient, body: dict[str, object]) -> None:
    assert (await admin.post(TOKENS, json=body)).status_code == 422
