"""The API's port before the service has started."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest
from starlette.responses import PlainTextResponse

from builderd.server import starting
from builderd.server.listener import Servers
from builderd.server.starting import ApiPort


@pytest.fixture
def port() -> ApiPort:
    return ApiPort(Servers(), "127.0.0.1", 0)


@pytest.fixture
async def anybody(port: ApiPort) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(port), base_url="http://builderd") as client:
        yield client


@pytest.mark.parametrize("prefix", ["", "/api/v1"])
async def test_health_says_that_it_lives_and_is_not_ready(anybody: httpx.AsyncClient, prefix: str) -> None:
    alive, ready = await anybody.get(f"{prefix}/healthz"), await anybody.get(f"{prefix}/readyz")
    assert (alive.status_code, alive.json()["success"]) == (200, True)
    assert (ready.status_code, ready.json()["code"], ready.headers["retry-after"]) == (503, "engine_unavailable", "1")
    assert ready.json()["data"]["database"] == {"ready": False, "message": "the service is starting"}
    assert alive.headers["cache-control"] == "no-store"
    assert alive.headers["x-request-id"] != ready.headers["x-request-id"]


async def test_other_calls_wait_for_the_service(anybody: httpx.AsyncClient, port: ApiPort) -> None:
    waiting = asyncio.create_task(anybody.get("/api/v1/builders"))
    while not port._decided._waiters:
        await asyncio.sleep(0)
    port.open(PlainTextResponse("started"))
    assert (await waiting).text == "started"
    assert (await anybody.get("/healthz")).text == "started"


async def test_a_call_is_refused_when_the_service_does_not_start(anybody: httpx.AsyncClient, port: ApiPort) -> None:
    waiting = asyncio.create_task(anybody.get("/api/v1/builders"))
    while not port._decided._waiters:
        await asyncio.sleep(0)
    port.give_up()
    refused = await waiting
    assert (refused.status_code, refused.json()["code"], refused.headers["retry-after"]) == (
        503,
        "engine_unavailable",
        "5",
    )


async def test_a_call_waits_for_a_limited_time(anybody: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(starting, "PATIENCE", 0)
    assert (await anybody.get("/api/v1/builders")).status_code == 503


async def test_health_names_the_reason_of_a_waiting_start() -> None:
    port = ApiPort(Servers(), "127.0.0.1", 0, lambda: "waiting for the database builderd.db: its disk fails")
    async with httpx.AsyncClient(transport=httpx.ASGITransport(port), base_url="http://builderd") as client:
        assert (await client.get("/healthz")).status_code == 200
        ready = (await client.get("/readyz")).json()
        port.give_up()
        refused = (await client.get("/api/v1/builders")).json()
    assert ready["data"]["database"]["message"] == "waiting for the database builderd.db: its disk fails"
    assert "its disk fails" in ready["message"]
    assert "its disk fails" in refused["message"]


async def test_a_standby_is_alive_and_refuses_all_else(anybody: httpx.AsyncClient, port: ApiPort) -> None:
    port.stand_by("one.example")
    alive, ready = (await anybody.get("/healthz")).json()["data"], await anybody.get("/readyz")
    assert (alive["role"], alive["worker"]) == ("standby", "one.example")
    assert (ready.status_code, ready.json()["data"]["role"]) == (503, "standby")
    for method in ("GET", "POST", "DELETE"):
        refused = await anybody.request(method, "/api/v1/builders")
        assert (refused.status_code, refused.json()["code"]) == (503, "engine_unavailable")
        assert "stands by for the service on one.example" in refused.json()["message"]
    port.stand_by("")
    assert "another service of its cluster" in (await anybody.get("/x")).json()["message"]
    port.stand_by(None)
    port.open(PlainTextResponse("started"))
    assert (await anybody.get("/x")).text == "started"
