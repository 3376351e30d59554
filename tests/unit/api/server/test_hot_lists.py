"""The hot list of builders answers as the call does, byte for byte, and holds its limits."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping
from typing import Any

import httpx
import pytest
from tests.service import MINIMAL, Service

from builderd.api.server.hot_lists import MAX_QUERY
from builderd.api.server.known_tenants import MAX_KNOWN, KnownTenants
from builderd.api.v1 import pages
from builderd.domain.errors import StoreUnavailable
from builderd.domain.ids import TenantId, secret_hash
from builderd.domain.tokens import Scope, Token
from builderd.operations.rates import Rates
from builderd.services.tenant_queue import MAX_WAITING

BUILDERS = "/api/v1/builders"
#: Read transactions of the API: those of a list, and of one whose query has an escaped letter, which means the same.
HOT, COLD = ["_list_hot"], ["identity_of", "list_builders"]


async def created(service: Service, **more: Any) -> str:
    response = await service.client(service.write).post(BUILDERS, json={**MINIMAL, **more})
    assert response.status_code == 201, response.text
    uuid: str = response.json()["data"]["uuid"]
    return uuid


async def filled(service: Service) -> None:
    """Make four builders, and stop them: their states stay as they are."""
    for number in range(4):
        uuid = await created(service, name=f"app-{number}", env={"GREETING": 'h"\u00e4\u2028'})
        await service.client(service.write).post(f"{BUILDERS}/{uuid}/stop")


async def known(service: Service, secret: str) -> httpx.AsyncClient:
    """Return a client whose token has made a call: the tenant of a token is known from then on."""
    client = service.client(secret)
    await client.get(BUILDERS)
    return client


def shown(response: httpx.Response) -> tuple[int, Any, Mapping[str, str]]:
    counted = ("x-request-id", "ratelimit", "ratelimit-remaining", "ratelimit-reset", "content-length")
    headers = {name: value for name, value in response.headers.items() if name not in counted}
    body = response.json()
    for one in body.get("data", []):
        # Grows between two calls.
        one["cost"] = {name: round(value, 1) for name, value in one["cost"].items() if name != "currency"}
    return response.status_code, body, headers


@pytest.fixture
def visits(service: Service, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Record of the API's read transactions, by function: a hot list has one, the call itself has two."""
    found, read = list[str](), service.store._read

    def noted(work: Any) -> Any:
        if work.__module__.startswith("builderd.api"):
            found.append(work.__qualname__.partition(".")[0])
        return read(work)

    monkeypatch.setattr(service.store, "_read", noted)
    return found


QUERIES = (
    "page=1",
    "per_page=100&page=1",
    "per_page=2&page=2",
    "page=9",
    "page=1&sort=name&status=stopped&job_type=always_on",
    "page=1&search=p-1",
    "page=1&name=app-2",
    "page=1&sort=-updated_at",
)


async def test_answer_is_that_of_the_call(service: Service, visits: list[str]) -> None:
    await filled(service)
    for secret in (service.write, service.read, service.other):
        client = await known(service, secret)
        for query in QUERIES:
            visits.clear()
            hot = await client.get(f"{BUILDERS}?{query}")
            assert visits == HOT
            cold = await client.get(f"{BUILDERS}?{query.replace('page', 'p%61ge', 1)}")
            assert visits == HOT + COLD
            assert shown(hot) == shown(cold)
            assert hot.status_code == 200


async def test_a_list_without_a_query_is_hot_too(service: Service, visits: list[str]) -> None:
    await filled(service)
    client = await known(service, service.read)
    visits.clear()
    hot, cold = await client.get(BUILDERS), await client.get(f"{BUILDERS}?p%61ge=1")
    assert (shown(hot), visits) == (shown(cold), HOT + COLD)
    assert hot.json()["meta"] == {"page": 1, "per_page": 25, "total": 4}


LEFT_TO_THE_CALL = (
    *("page=0", "per_page=101", "page=1.5", "page=99999999999999999999", "per_page=x", "sort=size", "status=gone"),
    *("pages=1", "page=1&page=2", "name=a&name=b", "page=", "page", "&", "page=1&", "search=%00", "search=a+b"),
    *("search=" + "a" * 64, "search=" + "a" * MAX_QUERY, "&".join(f"a_{'b' * number}=1" for number in range(120))),
)


async def test_refused_and_escaped_queries_are_left_to_the_call(service: Service, visits: list[str]) -> None:
    client = await known(service, service.read)
    for query in LEFT_TO_THE_CALL:
        visits.clear()
        response = await client.get(f"{BUILDERS}?{query}")
        assert response.status_code in (200, 422), query
        assert visits == (COLD if response.status_code == 200 else COLD[:1]), query


async def test_other_methods_and_masked_answers_are_the_calls(service: Service, visits: list[str]) -> None:
    await created(service)
    client = await known(service, service.read)
    head = await client.head(BUILDERS)
    assert (head.status_code, head.content) == (200, b"")
    visits.clear()
    masked = await client.get(BUILDERS, headers={"Builderd-Mask": "credentials"})
    assert (masked.status_code, visits) == (200, [*COLD, "_MaskedAnswer"])
    assert (await client.post(BUILDERS, json={})).status_code == 403


@pytest.mark.parametrize("header", ["Bearer bd_unknown", "Bearer \xff", "Basic dXNlcjpwYXNz", "Bearer", None])
async def test_without_a_valid_token_nothing_is_answered(service: Service, header: str | None) -> None:
    headers = [] if header is None else [(b"Authorization", header.encode("latin-1"))]
    response = await service.client(None).get(BUILDERS, headers=headers)
    assert (response.status_code, response.json()["code"]) == (401, "unauthenticated")


async def test_a_revoked_token_is_refused_at_once_and_takes_no_turn_from_then_on(service: Service) -> None:
    await created(service)
    # Slowly refilled, so that both answers have the same number left.
    service.app.state.rates = Rates(requests=10)
    client = await known(service, service.read)
    tenant = (await token_of(service, service.read)).tenant_id
    same = await known(service, await service.token("acme", Scope.READ))
    for one in (client, same):
        await service.revoke(one.headers["Authorization"].removeprefix("Bearer "))
    refused, cold = await client.get(BUILDERS), await same.get(f"{BUILDERS}?p%61ge=1")
    assert shown_error(refused) == shown_error(cold)
    assert refused.status_code == 401
    async with service.app.state.operations.lists.one(tenant):
        assert (await client.get(BUILDERS)).status_code == 401


async def test_a_token_without_the_scope_is_refused_and_reads_no_page(
    service: Service, visits: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    await created(service)
    client = service.client(await service.token("acme", Scope.SKIP_GATES))
    first = await client.get(BUILDERS)
    monkeypatch.setattr("builderd.services.builder_lists.page", None)
    visits.clear()
    second = await client.get(BUILDERS)
    assert (second.status_code, second.json(), visits) == (403, first.json(), HOT)


async def test_calls_count_once_against_the_rate(service: Service) -> None:
    await created(service)
    service.app.state.rates = Rates(requests=4)
    client = service.client(service.write)
    queries = ("", "?page=1", "?p%61ge=1", "?page=2")
    found = [await client.get(f"{BUILDERS}{query}") for query in queries]
    assert [response.headers["RateLimit-Remaining"] for response in found] == ["3", "2", "1", "0"]
    over, cold = await client.get(BUILDERS), await client.get(f"{BUILDERS}?p%61ge=1")
    assert (over.status_code, over.json()["code"]) == (429, "rate_limited")
    assert shown_error(over) == shown_error(cold)
    assert "retry-after" in over.headers


async def test_revoked_tokens_are_counted_by_address(service: Service) -> None:
    service.app.state.rates = Rates(failures=2)
    clients = [await known(service, await service.token("acme", Scope.READ)) for _ in range(3)]
    for client in clients:
        await service.revoke(client.headers["Authorization"].removeprefix("Bearer "))
    assert [(await client.get(BUILDERS)).status_code for client in clients] == [401, 401, 429]


async def test_a_hot_list_has_an_id_and_is_counted_by_its_route(service: Service) -> None:
    client = await known(service, service.read)
    response = await client.get(BUILDERS, headers={"X-Request-Id": "mine"})
    assert response.headers["X-Request-Id"] == "mine"
    assert response.headers["Cache-Control"] == "no-store"
    text = (await service.app.state.meter.render(service.application)).decode()
    assert 'builderd_http_requests_total{method="GET",route="/api/v1/builders",status="200"} 2.0' in text


async def test_calls_of_the_token_are_counted_and_its_last_use_is_recorded(service: Service) -> None:
    client = await known(service, service.read)
    token = await token_of(service, service.read)
    assert token.last_used_at is not None
    calls = service.app.state.operations.token_calls
    before = sum(calls.pending(token.id).counts)
    await client.get(BUILDERS)
    assert sum(calls.pending(token.id).counts) == before + 1


async def test_a_last_use_that_cannot_be_recorded_leaves_nothing_held(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    await created(service)
    client = await known(service, service.read)
    operations, token = service.app.state.operations, await token_of(service, service.read)

    async def fail(*_: object) -> None:
        assert operations.held_bytes.held(token.tenant_id) > 0
        raise StoreUnavailable("The database is away.", retry_after=5)

    monkeypatch.setattr("builderd.services.tokens.needs_touch", lambda *_: True)
    monkeypatch.setattr(operations.last_uses, "record", fail)
    response = await client.get(BUILDERS)
    assert (response.status_code, response.headers["retry-after"]) == (503, "5")
    assert operations.held_bytes.held(token.tenant_id) == 0
    monkeypatch.undo()
    assert (await client.get(BUILDERS)).status_code == 200


async def test_a_long_list_is_sent_in_pieces_within_the_budget(
    service: Service, visits: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    env = {f"LARGE_{number}": "\u00e4" * 9_000 for number in range(5)}
    for number in range(3):
        await created(service, name=f"app-{number}", env=env)
    client, operations = await known(service, service.read), service.app.state.operations
    tenant, held = (await token_of(service, service.read)).tenant_id, list[int]()

    async def sent(pieces: Any, holding: Any) -> Any:
        held.append(operations.held_bytes.held(tenant))
        async for piece in send(pieces, holding):
            yield piece

    send = pages._sent
    monkeypatch.setattr(pages, "_sent", sent)
    visits.clear()
    response = await client.get(BUILDERS)
    assert [one["env"] for one in response.json()["data"]] == [env] * 3
    assert (visits, held) == (HOT, [len(response.content)])
    assert int(response.headers["Content-Length"]) == len(response.content)
    assert operations.held_bytes.held(tenant) == 0


async def test_one_tenant_reads_one_list_at_a_time_and_no_more_than_a_hundred_wait(service: Service) -> None:
    client, other = await known(service, service.read), await known(service, service.other)
    tenant = (await token_of(service, service.read)).tenant_id
    async with service.app.state.operations.lists.one(tenant):
        waiting = [asyncio.create_task(client.get(BUILDERS)) for _ in range(MAX_WAITING + 1)]
        done, waiting_still = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        assert [one.result().status_code for one in done] == [429]
        assert (await other.get(BUILDERS)).status_code == 200
        assert not any(one.done() for one in waiting_still)
    assert {response.status_code for response in await asyncio.gather(*waiting_still)} == {200}


async def test_a_slow_disk_does_not_stop_the_loop(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    client = await known(service, service.read)
    slow, read = threading.Event(), service.store._read

    def late(work: Any) -> Any:
        assert slow.wait(20)
        return read(work)

    monkeypatch.setattr(service.store, "_read", late)
    call = asyncio.create_task(client.get(BUILDERS))
    for _ in range(20):
        await asyncio.sleep(0.001)
    assert not call.done()
    slow.set()
    assert (await call).status_code == 200


def test_tenants_of_the_oldest_tokens_are_forgotten() -> None:
    tenants = KnownTenants()
    for number in range(MAX_KNOWN + 1):
        tenants.remember(str(number), TenantId("acme"))
    assert tenants.get("0") is None
    assert tenants.get(str(MAX_KNOWN)) == "acme"


def shown_error(response: httpx.Response) -> tuple[int, Any, Mapping[str, str]]:
    counted = ("x-request-id", "ratelimit", "ratelimit-reset", "retry-after", "content-length")
    headers = {name: value for name, value in response.headers.items() if name not in counted}
    return response.status_code, response.json()["code"], headers


async def token_of(service: Service, secret: str) -> Token:
    token = await service.application.store.read(lambda uow: uow.tokens.by_secret_hash(secret_hash(secret)))
    assert token is not None
    return token
