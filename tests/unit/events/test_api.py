"""Events over HTTP: a page, or each as it happens, of one's own tenant alone."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from tests.service import MINIMAL, Service, listening

from builderd.events import service as events
from builderd.server import streams

API = "/api/v1"


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "LOOK_INTERVAL", 0.02)
    monkeypatch.setattr(events, "LEAST_INTERVAL", 0.001)


@pytest.fixture
async def uuid(client: httpx.AsyncClient) -> str:
    return str((await client.post(f"{API}/builders", json=MINIMAL)).json()["data"]["uuid"])


async def listed(client: httpx.AsyncClient, path: str, **query: Any) -> list[dict[str, Any]]:
    response = await client.get(f"{API}{path}", params=query)
    assert response.status_code == 200, response.text
    data: list[dict[str, Any]] = response.json()["data"]
    return data


async def test_events_come_newest_first_with_all_that_the_contract_names(client: httpx.AsyncClient, uuid: str) -> None:
    response = await client.get(f"{API}/builders/{uuid}/events", params={"per_page": 100})
    data, meta = response.json()["data"], response.json()["meta"]
    assert meta == {"page": 1, "per_page": 100, "total": len(data)}
    assert [event["id"] for event in data] == sorted((event["id"] for event in data), reverse=True)
    oldest, newest = data[-1], data[0]
    assert set(oldest) == {"id", "time", "type", "builder", "actor", "reason", "details"}
    assert (oldest["type"], oldest["builder"], oldest["actor"]) == ("builder.created", uuid, "token test")
    assert (newest["type"], newest["details"]) == ("builder.status", {"from": "creating", "to": "running"})
    assert await listed(client, "/events", per_page=100) == data


async def test_events_are_paged_and_filtered(client: httpx.AsyncClient, uuid: str) -> None:
    all_of_them = await listed(client, "/events", per_page=100)
    assert await listed(client, "/events", page=2, per_page=2) == all_of_them[2:4]
    kinds = {event["type"] for event in await listed(client, "/events", type="stage.*,builder.created")}
    assert kinds == {"stage.started", "stage.finished", "builder.created"}
    assert await listed(client, "/events", since="2100-01-01T00:00:00Z") == []
    assert await listed(client, "/events", until="2100-01-01T00:00:00Z", per_page=100) == all_of_them


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("since=2026-01-02T00:00:00Z&until=2026-01-02T00:00:00Z", "until"),
        ("until=2026-01-02T00:00:00Z&follow=true", "until"),
    ],
)
async def test_a_hostile_query_is_refused(client: httpx.AsyncClient, query: str, field: str) -> None:
    response = await client.get(f"{API}/events?{query}")
    assert (response.status_code, list(response.json()["errors"])) == (422, [field])


async def test_a_deleted_builders_events_are_in_the_tenants_list(client: httpx.AsyncClient, uuid: str) -> None:
    await client.delete(f"{API}/builders/{uuid}")
    assert (await client.get(f"{API}/builders/{uuid}/events")).status_code == 404
    kinds = [event["type"] for event in await listed(client, "/events", type="builder.*")]
    assert kinds[:2] == ["builder.status", "builder.deleted"]


# Following


class Follower:
    """Reads a stream as it comes."""

    def __init__(self, response: httpx.Response) -> None:
        self._lines = response.aiter_lines()

    async def events(self, count: int) -> list[dict[str, Any]]:
        return [await self._event() for _ in range(count)]

    async def _event(self) -> dict[str, Any]:
        fields: dict[str, str] = {}
        async with asyncio.timeout(30):
            async for line in self._lines:
                name, _, value = line.partition(": ")
                fields[name] = value
                if not line and "data" in fields:
                    told: dict[str, Any] = json.loads(fields["data"])
                    assert (fields["event"], fields["id"]) == (told["type"], str(told["id"]))
                    return told
        raise EOFError


@pytest.fixture
async def real(service: Service) -> AsyncIterator[httpx.AsyncClient]:
    """Over a real connection: in memory a stream would have to end before it is read."""
    async with listening(service.app) as url:
        client = service.client(service.write, url)
        yield client
        await client.aclose()


async def test_event_stream_resumes_after_last_event_id(real: httpx.AsyncClient, service: Service, uuid: str) -> None:
    before = await listed(real, "/events", per_page=100)
    async with real.stream("GET", f"{API}/events", params={"follow": True}) as response:
        assert response.headers["content-type"].partition(";")[0] == "text/event-stream"
        await real.post(f"{API}/builders/{uuid}/stop")
        first = await Follower(response).events(1)
    assert first[0]["id"] > before[0]["id"]
    await real.post(f"{API}/builders/{uuid}/start")
    headers = {"Last-Event-ID": str(first[0]["id"])}
    later = [event for event in await listed(real, "/events", per_page=100) if event["id"] > first[0]["id"]]
    async with real.stream("GET", f"{API}/events", params={"follow": True}, headers=headers) as response:
        assert await Follower(response).events(len(later)) == later[::-1]


async def test_a_follower_may_begin_in_the_past_and_filter(real: httpx.AsyncClient, uuid: str) -> None:
    query: dict[str, Any] = {"follow": True, "since": "2020-01-01T00:00:00Z", "type": "builder.*"}
    async with real.stream("GET", f"{API}/builders/{uuid}/events", params=query) as response:
        told = await Follower(response).events(2)
    assert [event["type"] for event in told] == ["builder.created", "builder.status"]


async def test_a_stream_of_one_builder_ends_with_it(real: httpx.AsyncClient, uuid: str) -> None:
    query: dict[str, Any] = {"follow": True, "type": "builder.*"}
    async with real.stream("GET", f"{API}/builders/{uuid}/events", params=query) as response:
        await real.delete(f"{API}/builders/{uuid}")
        follower = Follower(response)
        assert [event["type"] for event in await follower.events(2)] == ["builder.deleted", "builder.status"]
        with pytest.raises(EOFError):
            await follower.events(1)


@pytest.mark.parametrize("event_id", ["x", "-1", "1" * 19, "1 2", "\u0661"])
async def test_an_id_that_is_none_is_refused_rather_than_begun_elsewhere(
    client: httpx.AsyncClient, event_id: str
) -> None:
    headers = [(b"Last-Event-ID", event_id.encode())]
    response = await client.get(f"{API}/events", params={"follow": True}, headers=headers)
    assert (response.status_code, list(response.json()["errors"])) == (422, ["Last-Event-ID"])


async def test_a_tenant_has_so_many_streams_and_gets_them_back(
    real: httpx.AsyncClient, service: Service, uuid: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service.app.state.operations.event_streams, "maximum", 1)
    query: dict[str, Any] = {"follow": True, "since": "2020-01-01T00:00:00Z"}
    async with real.stream("GET", f"{API}/events", params=query) as response:
        follower = Follower(response)
        await follower.events(1)
        refused = await real.get(f"{API}/events", params=query)
        assert (refused.status_code, refused.json()["code"]) == (429, "rate_limited")
        assert "Retry-After" in refused.headers
    async with asyncio.timeout(30):
        while service.app.state.operations.event_streams.total():
            await asyncio.sleep(0.01)


async def test_a_stream_ends_with_its_token(
    real: httpx.AsyncClient, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "HEARTBEAT_SECONDS", 0.05)
    async with real.stream("GET", f"{API}/events", params={"follow": True}) as response:
        await service.revoke(service.write)
        with pytest.raises(EOFError):
            await Follower(response).events(1)
