"""Calls that wait for an outcome: so many of a tenant at the same time, and only for a caller who is there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from starlette.requests import ClientDisconnect, Request
from starlette.types import Message
from tests.fakes.sandboxes import Behaviour
from tests.service import MINIMAL, Service, listening

from builderd.server.preferences import until_disconnect

API = "/api/v1"
BUILDERS = f"{API}/builders"
KEY = {"Idempotency-Key": "key-1"}
AT_ONCE = {"Prefer": "respond-async"}
NEVER_UP = "sleep inf"


@pytest.fixture
async def url(client: httpx.AsyncClient) -> str:
    """Return the URL of a builder that runs."""
    return str((await client.post(BUILDERS, json=MINIMAL)).headers["location"])


async def until(holds: Callable[[], bool]) -> None:
    """Sooner than a start that comes to nothing is given up."""
    async with asyncio.timeout(30):
        while not holds():
            await asyncio.sleep(0.002)


def waiting(service: Service) -> int:
    total: int = service.app.state.operations.blocking_calls.total()
    return total


@asynccontextmanager
async def one_waiting(service: Service) -> AsyncIterator[asyncio.Task[httpx.Response]]:
    """A call that creates what does not come up; it is answered when the block has ended."""
    service.engine.behave(NEVER_UP, Behaviour(listens_at=None))
    client = service.client(service.write)
    body = {**MINIMAL, "name": "never-up", "entrypoint": NEVER_UP}
    call = asyncio.create_task(client.post(BUILDERS, json=body))
    await until(lambda: NEVER_UP in [one.spec.entrypoint for one in service.engine.known.values()])
    yield call
    (made,) = (await client.get(BUILDERS, params={"name": "never-up"})).json()["data"]
    assert (await client.delete(f"{BUILDERS}/{made['uuid']}", headers=AT_ONCE)).status_code == 202
    await asyncio.gather(call, return_exceptions=True)
    await until(lambda: waiting(service) == 0)


async def left(client: httpx.AsyncClient, url: str) -> list[Any]:
    """All that a call on this builder would leave."""
    builder = (await client.get(url)).json()["data"]
    paths = (BUILDERS, f"{API}/backups", f"{url}/versions", f"{url}/events")
    return [{**builder, "cost": None}, *[(await client.get(path)).json()["meta"]["total"] for path in paths]]


async def test_a_call_too_many_is_refused_and_leaves_nothing(
    client: httpx.AsyncClient, service: Service, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    backup = (await client.post(f"{url}/backups")).json()["data"]["id"]
    new = {**MINIMAL, "name": "third"}
    monkeypatch.setattr(service.app.state.operations.blocking_calls, "maximum", 1)
    async with one_waiting(service):
        before = await left(client, url)
        calls: tuple[tuple[str, str, Any], ...] = (
            ("POST", BUILDERS, new),
            ("PUT", url, {"files": {"main.py": "print('new')"}}),
            ("PATCH", url, {"visibility": "private"}),
            ("PUT", f"{url}/auto-stop", {"interval": 5}),
            ("POST", f"{url}/rollback", {"version": 1}),
            *[("POST", f"{url}/{verb}", None) for verb in ("start", "stop", "restart", "service-token", "backups")],
            ("POST", f"{url}/backups/{backup}/restore", {}),
            ("POST", f"{API}/backups/{backup}/restore", {"as": "fourth"}),
            ("DELETE", url, None),
        )
        for method, path, body in calls:
            refused = await client.request(method, path, json=body, headers=KEY)
            assert (refused.status_code, refused.json()["code"]) == (429, "rate_limited"), (method, path)
            assert "Prefer: respond-async" in refused.json()["message"]
            assert "Retry-After" in refused.headers
        assert await left(client, url) == before
        assert (await service.kept())["idempotency"] == 0
        assert (await service.client(service.other).post(BUILDERS, json=MINIMAL)).status_code == 201
        assert (await client.post(f"{url}/restart", headers=AT_ONCE)).status_code == 202
        at_once = {**MINIMAL, "name": "at-once"}
        assert (await client.post(BUILDERS, json=at_once, headers=AT_ONCE)).status_code == 202
    assert (await client.post(BUILDERS, json=new, headers=KEY)).status_code == 201
    assert (await client.post(f"{url}/start")).status_code == 200


async def test_a_retry_that_has_no_place_may_be_made_again(
    client: httpx.AsyncClient, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service.app.state.operations.blocking_calls, "maximum", 1)
    service.engine.behave(MINIMAL["entrypoint"], Behaviour(listens_at=30))
    first = asyncio.create_task(client.post(BUILDERS, json=MINIMAL, headers=KEY))
    await until(lambda: bool(service.engine.known))
    await service.app.state.operations.close()
    await asyncio.gather(first, return_exceptions=True)
    uuid = (await client.get(BUILDERS)).json()["data"][0]["uuid"]
    async with one_waiting(service):
        assert (await client.post(BUILDERS, json=MINIMAL, headers=KEY)).status_code == 429
    again = await client.post(BUILDERS, json=MINIMAL, headers=KEY)
    assert (again.status_code, again.json()["data"]["uuid"]) == (201, uuid)


async def test_a_creation_counts_until_it_ends_though_its_caller_left(
    client: httpx.AsyncClient, service: Service, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service.app.state.operations.blocking_calls, "maximum", 1)
    async with one_waiting(service) as call:
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
        assert (await client.post(f"{url}/start")).status_code == 429
    assert (await client.post(f"{url}/start")).status_code == 200


async def test_disconnect_ends_the_wait_but_not_the_start(client: httpx.AsyncClient, service: Service) -> None:
    service.engine.behave(MINIMAL["entrypoint"], Behaviour(), Behaviour(listens_at=None))
    url = (await client.post(BUILDERS, json=MINIMAL)).headers["location"]
    await client.post(f"{url}/stop")
    async with listening(service.app) as address:
        call = asyncio.create_task(service.client(service.write, address).post(f"{url}/start"))
        await until(lambda: bool(service.engine.known))
        assert waiting(service) == 1
        call.cancel()
        await until(lambda: waiting(service) == 0)
    assert len(service.engine.known) == 1


def request_of(*messages: Message) -> Request:
    """A request from which these come, and then nothing more."""
    left = list(messages)

    async def receive() -> Message:
        if not left:
            await asyncio.Event().wait()
        return left.pop(0)

    return Request({"type": "http"}, receive)


LAST: Message = {"type": "http.request", "body": b"", "more_body": False}
GONE: Message = {"type": "http.disconnect"}


@pytest.mark.parametrize("messages", [(), (LAST,), ({**LAST, "more_body": True}, GONE)])
async def test_result_is_returned_to_a_connected_client(messages: tuple[Message, ...]) -> None:
    assert await until_disconnect(request_of(*messages), asyncio.sleep(0.02, "it")) == "it"


@pytest.mark.parametrize("messages", [(GONE,), (LAST, GONE)])
async def test_wait_is_cancelled_on_disconnect(messages: tuple[Message, ...]) -> None:
    over = asyncio.Event()

    async def coming() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            over.set()

    with pytest.raises(ClientDisconnect):
        await until_disconnect(request_of(*messages), coming())
    assert over.is_set()


async def test_error_of_the_wait_is_raised() -> None:
    async def coming() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await until_disconnect(request_of(LAST), coming())
