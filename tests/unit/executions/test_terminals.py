"""A terminal over a WebSocket."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import httpx
import pytest
from tests.fakes.processes import Answer
from tests.service import METRICS_TOKEN, MINIMAL, Service, listening
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.http11 import Response
from websockets.typing import Subprotocol

from builderd.core.errors import StoreUnavailable
from builderd.executions import api as executions
from builderd.executions.model import LOGIN_SHELL, Window
from builderd.server import middleware, streams
from builderd.server.sandbox_api import create_sandbox_app

PATIENCE = 60
BUILDERS = "/api/v1/builders"


@pytest.fixture
async def url(client: httpx.AsyncClient, service: Service) -> AsyncIterator[str]:
    service.engine.answer("/bin/bash --login", Answer(echoes=True, exit_code=3))
    uuid = (await client.post(BUILDERS, json=MINIMAL)).json()["data"]["uuid"]
    async with listening(service.app) as base:
        yield f"{base.replace('http', 'ws')}{BUILDERS}/{uuid}/terminal"


def opened(url: str, secret: str | None) -> connect:
    headers = {} if secret is None else {"Authorization": f"Bearer {secret}"}
    return connect(url, additional_headers=headers, proxy=None, open_timeout=PATIENCE)


async def end(socket: ClientConnection) -> int:
    """The code that it was closed with, after all that is to come."""
    async with asyncio.timeout(PATIENCE):
        with suppress(ConnectionClosed):
            async for _ in socket:
                pass
    assert socket.close_code is not None
    return socket.close_code


async def test_terminal_relays_input_and_output(service: Service, url: str) -> None:
    async with asyncio.timeout(PATIENCE), opened(f"{url}?columns=100&rows=30", service.write) as socket:
        await socket.send(b"echo \xff\r")
        assert await socket.recv() == b"echo \xff\r"
        await socket.send(json.dumps({"type": "resize", "columns": 120, "rows": 40}))
        await socket.send(b"more")
        assert await socket.recv() == b"more"
    (spec,) = service.engine.processes
    assert (spec.argv, spec.window) == (LOGIN_SHELL, Window(100, 30))


async def test_terminal_sends_the_exit_code_and_closes(service: Service, url: str) -> None:
    service.engine.answer("make", Answer(7, "done\n"))
    async with asyncio.timeout(PATIENCE), opened(f"{url}?command=make", service.write) as socket:
        assert await socket.recv() == b"done\n"
        assert json.loads(await socket.recv()) == {"type": "exit", "exit_code": 7}
        assert await end(socket) == streams.NORMAL


async def test_a_browser_names_its_token_as_a_protocol(service: Service, url: str) -> None:
    names = [Subprotocol(executions.PROTOCOL), Subprotocol(f"bearer.{service.write}")]
    async with connect(url, subprotocols=names, proxy=None, open_timeout=PATIENCE) as socket:
        assert socket.subprotocol == executions.PROTOCOL
    with pytest.raises(InvalidStatus):
        async with connect(
            url, subprotocols=[names[0], Subprotocol("bearer.bd_wrong")], proxy=None, open_timeout=PATIENCE
        ):
            pass


async def refusal(url: str, secret: str | None) -> tuple[int, str]:
    response = await refused(url, secret)
    return response.status_code, json.loads(response.body or b"{}")["code"]


async def refused(url: str, secret: str | None) -> Response:
    with pytest.raises(InvalidStatus) as told:
        async with opened(url, secret):
            pass
    return told.value.response


async def test_a_refusal_has_an_id_and_a_line_as_any_answer(
    service: Service, url: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        response = await refused(url, "bd_wrong")
        async with opened(f"{url}?command=echo%20secret", service.write) as socket:
            assert socket.response
            assert socket.response.headers["X-Request-Id"]
            await socket.close()
        answered = ""
        async with asyncio.timeout(PATIENCE):
            while 'status="101"' not in answered:
                answered = (await service.client(METRICS_TOKEN).get("/metrics")).text
    assert response.headers["Cache-Control"] == "no-store"
    assert response.headers["X-Request-Id"]
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert "secret" not in caplog.text
    for status in (401, 101):
        assert f'method="GET",route="{BUILDERS}/{{uuid}}/terminal",status="{status}"' in answered
    lines = [record.getMessage().split() for record in caplog.records if record.name == middleware.__name__]
    assert [line[3] for line in lines if line[2].endswith("/terminal")] == ["status=401", "status=101"]


@pytest.mark.parametrize("path", ["/terminal", f"{BUILDERS}/x/files/terminal", f"{BUILDERS}/a%2Fb/terminal"])
async def test_elsewhere_the_offer_of_a_websocket_is_passed_over(service: Service, path: str) -> None:
    async with listening(service.app) as base:
        assert await refusal(f"{base.replace('http', 'ws')}{path}", service.write) == (404, "not_found")


async def test_sandbox_api_has_no_terminals(service: Service) -> None:
    async with listening(create_sandbox_app(service.application)) as base:
        url = f"{base.replace('http', 'ws')}{BUILDERS}/x/terminal"
        response = await refused(url, service.write)
    assert (response.status_code, json.loads(response.body or b"{}")["code"]) == (404, "not_found")
    assert response.headers["X-Request-Id"]


async def test_read_scope_gets_no_terminal(service: Service, url: str) -> None:
    assert await refusal(url, None) == (401, "unauthenticated")
    assert await refusal(url, "bd_wrong") == (401, "unauthenticated")
    assert await refusal(url, service.read) == (403, "forbidden")
    assert await refusal(url, service.other) == (404, "not_found")
    assert service.engine.processes == []


@pytest.mark.parametrize("query", ["columns=0", "rows=65536", "columns=x", "rows=-1", "columns=٣", "command=%20"])
async def test_a_wrong_query_is_refused(service: Service, url: str, query: str) -> None:
    assert await refusal(f"{url}?{query}", service.write) == (422, "validation_error")


async def test_a_stopped_builder_has_no_terminal(service: Service, url: str, client: httpx.AsyncClient) -> None:
    await client.post(f"{BUILDERS}/{url.split('/')[-2]}/stop")
    assert await refusal(url, service.write) == (409, "invalid_state")


@pytest.mark.parametrize(
    "text", ["", "hello", "[]", '{"type": "x"}', '{"type": "resize"}', '{"type":"resize","columns":0,"rows":1}']
)
async def test_a_message_that_makes_no_sense_ends_it(service: Service, url: str, text: str) -> None:
    async with opened(url, service.write) as socket:
        await socket.send(text)
        assert await end(socket) == streams.POLICY


async def test_a_token_that_ends_takes_its_terminal_along(
    service: Service, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "GUARD_SECONDS", 0.05)
    async with opened(url, service.write) as socket:
        await service.revoke(service.write)
        assert await end(socket) == streams.POLICY


async def test_an_unavailable_database_ends_no_terminal(
    service: Service, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, check = asyncio.Semaphore(0), executions._check_token

    async def fail_at_first(*args: Any) -> None:
        asked.release()
        if not is_back.is_set():
            raise StoreUnavailable("The database cannot be used now.", retry_after=5)
        await check(*args)

    is_back = asyncio.Event()
    monkeypatch.setattr(streams, "GUARD_SECONDS", 0.02)
    monkeypatch.setattr(executions, "_check_token", fail_at_first)
    async with asyncio.timeout(PATIENCE), opened(url, service.write) as socket:
        for _ in range(3):
            await asked.acquire()
        await socket.send(b"more")
        assert await socket.recv() == b"more"
        await service.revoke(service.write)
        is_back.set()
        assert await end(socket) == streams.POLICY


async def test_terminal_requires_a_websocket(service: Service, url: str) -> None:
    place = url.replace("ws", "http", 1)
    async with service.client(service.write, place) as plain:
        upgrade = {"Connection": "Upgrade", "Upgrade": "websocket"}
        key = {"Sec-WebSocket-Key": base64.b64encode(bytes(16)).decode()}
        for headers in (
            {},
            upgrade,
            {**upgrade, **key},
            {**upgrade, **key, "Sec-WebSocket-Version": "8"},
            {**upgrade, "Sec-WebSocket-Key": "x", "Sec-WebSocket-Version": "13"},
            {**upgrade, **key, "Sec-WebSocket-Version": "13", "X-Long": "x" * 10_000},
        ):
            answer = await plain.get(place, headers=headers)
            assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
            assert answer.headers["X-Request-Id"]
        right = {**upgrade, **key, "Sec-WebSocket-Version": "13"}
        assert (await plain.post(place, headers=right)).json()["code"] == "not_found"


async def test_a_message_too_large_is_not_taken(service: Service, url: str) -> None:
    async with opened(url, service.write) as socket:
        await socket.send(b"x" * 1_100_000)
        assert await end(socket) == 1009
