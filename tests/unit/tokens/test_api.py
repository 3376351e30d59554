"""API tokens over the API: a tenant's own, and never more than the token that makes them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import partial

import httpx
import pytest
from tests.service import MINIMAL, Service

from builderd.builders.service import Caller
from builderd.code import service as bundles
from builderd.core.errors import Unauthenticated
from builderd.core.ids import secret_hash
from builderd.executions import ssh
from builderd.previews.service import create as create_link
from builderd.sessions import revocations
from builderd.tokens import service as tokens
from builderd.tokens.model import MAX_VALID_TOKENS, Scope
from builderd.webhooks import service as webhooks

TOKENS = "/api/v1/tokens"
HOOK = "https://example.com/hook"


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


async def made_by(client: httpx.AsyncClient, builder: str, url: str = HOOK) -> dict[str, dict[str, str]]:
    """Let a token make one of each thing that works without it; return the answers' data."""
    calls = {
        "token": (TOKENS, {"name": "made"}),
        "ssh": (f"/api/v1/builders/{builder}/ssh", {"expires_minutes": 600}),
        "preview_link": (f"/api/v1/builders/{builder}/preview-links", {"expires_minutes": 600}),
        "webhook": ("/api/v1/webhooks", {"url": url}),
        "upload": ("/api/v1/uploads", {"size": 3}),
    }
    answers = {kind: await client.post(path, json=body) for kind, (path, body) in calls.items()}
    assert [answer.status_code for answer in answers.values()] == [201] * len(calls)
    return {kind: answer.json()["data"] for kind, answer in answers.items()}


async def works(service: Service, made: dict[str, dict[str, str]]) -> dict[str, bool]:
    """Try each of these things without the token that made them."""
    application, now = service.application, service.application.clock.now()
    hooks = await application.store.read(lambda uow: uow.webhooks.all())
    try:
        await application.store.read(lambda uow: ssh.valid_grant(uow, made["ssh"]["token"], now))
        lets_in = True
    except Unauthenticated:
        lets_in = False
    upload = await service.client(None).put(made["upload"]["upload_url"], content=b"abc")
    hashed = secret_hash(made["preview_link"]["url"].partition("?service_token=")[2])
    token = await service.client(made["token"]["secret"]).get(f"{TOKENS}/current")
    return {
        "token": token.status_code == 200,
        "ssh": lets_in,
        "preview_link": hashed in service.previews.links,
        "webhook": any(one.id == made["webhook"]["id"] and one.status == "active" for one in hooks),
        "upload": upload.status_code == 200,
    }


async def test_things_that_a_token_made_end_with_it(service: Service, admin: httpx.AsyncClient) -> None:
    builder = (await admin.post("/api/v1/builders", json={**MINIMAL, "visibility": "private"})).json()["data"]
    leaked = (await admin.post(TOKENS, json={"name": "ci", "scopes": ["admin"]})).json()["data"]
    thief = service.client(leaked["secret"])
    nested = (await thief.post(TOKENS, json={"name": "nested", "scopes": ["admin"]})).json()["data"]
    own = await made_by(admin, builder["uuid"])
    stolen = await made_by(thief, builder["uuid"])
    hidden = await made_by(service.client(nested["secret"]), builder["uuid"], f"{HOOK}/hidden")
    for made in (own, stolen, hidden):
        assert set((await works(service, made)).values()) == {True}

    answer = await admin.delete(f"{TOKENS}/{leaked['id']}")
    assert answer.status_code == 200
    assert set((await works(service, stolen)).values()) == {False}
    assert set((await works(service, hidden)).values()) == {False}
    assert set((await works(service, own)).values()) == {True}

    ended = answer.json()["data"]["ended"]
    assert sorted(one["kind"] for one in ended) == sorted([*own, *own, "token"])
    expected = {(nested["id"], "nested", None)}
    for made in (stolen, hidden):
        expected |= {
            (made["token"]["id"], "made", None),
            (made["preview_link"]["id"], builder["name"], builder["uuid"]),
            (made["webhook"]["id"], made["webhook"]["url"], None),
            (made["upload"]["upload_id"], "", None),
        }
    assert {(one["id"], one["name"], one["builder"]) for one in ended if one["kind"] != "ssh"} == expected
    assert [one["name"] for one in ended if one["kind"] == "ssh"] == [builder["name"]] * 2
    assert f"{len(ended)} things" in answer.json()["message"]
    listed = {one["id"]: one["made_by"] for one in (await admin.get(TOKENS)).json()["data"]}
    assert listed[stolen["token"]["id"]] == leaked["id"]

    reasons = {one["id"]: one["status_reason"] for one in (await admin.get("/api/v1/webhooks")).json()["data"]}
    assert reasons[stolen["webhook"]["id"]] == "its token ci ended: revoked by token test"
    assert reasons[hidden["webhook"]["id"]] == "its token nested ended: revoked by token test"
    events = [one["type"] for one in (await admin.get("/api/v1/events")).json()["data"]]
    for kind in ("ssh.revoked", "preview_link.revoked", "webhook.disabled"):
        assert events.count(kind) == 2
    assert (await admin.delete(f"{TOKENS}/{leaked['id']}")).json()["data"]["ended"] == []


async def test_things_that_a_token_makes_last_no_longer_than_it(service: Service) -> None:
    client, end = await expiring(service, 3600)
    builder = (await client.post("/api/v1/builders", json={**MINIMAL, "visibility": "private"})).json()["data"]
    made = await made_by(client, builder["uuid"])
    for kind, one in made.items():
        assert datetime.fromisoformat(one["expires_at"]) == end.replace(microsecond=0), kind


async def test_a_revoked_expired_token_ends_what_is_left(
    service: Service, admin: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, end = await expiring(service, 3600)
    token = (await client.get(f"{TOKENS}/current")).json()["data"]
    hook = (await client.post("/api/v1/webhooks", json={"url": HOOK})).json()["data"]
    monkeypatch.setattr(service.application.clock, "now", lambda: end)
    assert (await client.get(f"{TOKENS}/current")).status_code == 401
    ended = (await admin.delete(f"{TOKENS}/{token['id']}")).json()["data"]["ended"]
    assert [(one["kind"], one["id"]) for one in ended] == [("webhook", hook["id"])]


async def test_a_token_that_was_revoked_since_it_was_recognized_makes_nothing(
    service: Service, admin: httpx.AsyncClient
) -> None:
    builder = (await admin.post("/api/v1/builders", json={**MINIMAL, "visibility": "private"})).json()["data"]["uuid"]
    application, now = service.application, service.application.clock.now()
    store = application.store
    own, _ = await store.write(lambda uow: tokens.create(uow, "acme", "ci", now, scopes=[Scope.ADMIN]))
    await store.write(lambda uow: revocations.revoke(uow, own.tenant_id, own.id, "me", "", now))
    caller = Caller.of(own)
    kept = await service.kept()
    attempts = [
        store.write(lambda uow: tokens.derive(uow, own, "more", now, scopes=[Scope.READ])),
        store.write(lambda uow: ssh.grant(uow, caller, builder, 60, now)),
        create_link(application, caller, builder, 60, None),
        store.write(lambda uow: webhooks.create(uow, application, caller, HOOK, ["*"], None, now)),
        store.write(lambda uow: bundles.create(uow, application.upload_rules, caller, 3, None, now)),
    ]
    for attempt in attempts:
        with pytest.raises(Unauthenticated):
            await attempt
    assert await service.kept() == kept
