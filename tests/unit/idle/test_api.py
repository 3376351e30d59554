"""Leases over HTTP, from outside and from inside an app."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import httpx
import pytest
from tests.service import MINIMAL, Service

from builderd.server.sandbox_api import create_sandbox_app

BUILDERS = "/api/v1/builders"


@pytest.fixture
async def own(client: httpx.AsyncClient) -> dict[str, Any]:
    data: dict[str, Any] = (await client.post(BUILDERS, json={**MINIMAL, "auto_stop_interval": 15})).json()["data"]
    return data


@pytest.fixture
def path(own: dict[str, Any]) -> str:
    return f"{BUILDERS}/{own['uuid']}/leases"


async def take(client: httpx.AsyncClient, path: str, seconds: int = 60) -> dict[str, Any]:
    response = await client.post(path, json={"seconds": seconds, "reason": "an import"})
    assert response.status_code == 201, response.text
    data: dict[str, Any] = response.json()["data"]
    return data


def seconds(lease: dict[str, Any]) -> float:
    created, expires = (datetime.fromisoformat(lease[name]) for name in ("created_at", "expires_at"))
    return (expires - created).total_seconds()


async def test_a_lease_is_taken_listed_renewed_and_ended(client: httpx.AsyncClient, path: str) -> None:
    lease = await take(client, path)
    assert (lease["reason"], seconds(lease)) == ("an import", 60)
    assert lease["created_by"].startswith("token ")
    assert (await client.get(path)).json()["data"] == [lease]
    one = f"{path}/{lease['id']}"
    renewed = (await client.put(one, json={"seconds": 3600})).json()["data"]
    assert renewed["reason"] == "an import"
    assert seconds(renewed) >= 3600
    assert (await client.delete(one)).status_code == 200
    assert (await client.get(path)).json()["data"] == []
    for gone in (await client.delete(one), await client.put(one, json={"seconds": 1})):
        assert (gone.status_code, gone.json()["code"]) == (404, "not_found")


async def test_lease_requires_a_running_builder(client: httpx.AsyncClient, own: dict[str, Any], path: str) -> None:
    await client.post(f"{BUILDERS}/{own['uuid']}/stop")
    response = await client.post(path, json={"seconds": 60})
    assert (response.status_code, response.json()["code"]) == (409, "invalid_state")


async def test_leases_do_not_pile_up(client: httpx.AsyncClient, path: str) -> None:
    for _ in range(100):
        await take(client, path, 3600)
    assert (await client.post(path, json={"seconds": 60})).status_code == 409


async def test_lease_of_one_builder_is_unknown_to_another(client: httpx.AsyncClient, path: str) -> None:
    lease = await take(client, path)
    second = (await client.post(BUILDERS, json={**MINIMAL, "name": "b"})).json()["data"]
    other = f"{BUILDERS}/{second['uuid']}/leases"
    assert (await client.delete(f"{other}/{lease['id']}")).status_code == 404
    assert (await client.get(path)).json()["data"] == [lease]


async def test_taking_and_ending_one_are_events(client: httpx.AsyncClient, own: dict[str, Any], path: str) -> None:
    lease = await take(client, path)
    await client.delete(f"{path}/{lease['id']}")
    events = (await client.get(f"{BUILDERS}/{own['uuid']}/events")).json()["data"]
    told = [(event["type"], event["reason"]) for event in events if event["type"].startswith("lease.")]
    assert told == [("lease.ended", "an import"), ("lease.taken", "an import")]


# From inside


async def test_an_app_says_itself_that_it_is_busy(service: Service, own: dict[str, Any], path: str) -> None:
    service.app = create_sandbox_app(service.application)
    inside = service.client(own["service_token"])
    lease = await take(inside, path)
    assert lease["created_by"] == "app"
    assert (await inside.get(path)).json()["data"] == [lease]
    assert (await inside.put(f"{path}/{lease['id']}", json={"seconds": 120})).status_code == 200
    assert (await inside.delete(f"{path}/{lease['id']}")).status_code == 200
    assert (await inside.post(path, json={"seconds": 0})).status_code == 422


async def test_an_app_keeps_no_other_builder_busy(client: httpx.AsyncClient, service: Service, path: str) -> None:
    second = (await client.post(BUILDERS, json={**MINIMAL, "name": "b"})).json()["data"]
    lease = await take(client, path)
    service.app = create_sandbox_app(service.application)
    foreign = service.client(second["service_token"])
    assert (await foreign.post(path, json={"seconds": 60})).status_code == 404
    assert (await foreign.get(path)).status_code == 404
    assert (await foreign.put(f"{path}/{lease['id']}", json={"seconds": 60})).status_code == 404
    assert (await foreign.delete(f"{path}/{lease['id']}")).status_code == 404
    for secret in (None, service.write, "bds_unknown"):
        assert (await service.client(secret).post(path, json={"seconds": 60})).status_code == 401
