"""Limits that keep a visit of a page from costing others."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import suppress
from datetime import timedelta
from typing import Any
from unittest.mock import Mock

import httpx
import pytest
from tests.fakes.processes import Answer
from tests.service import listening
from tests.unit.web.conftest import Pages
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed
from websockets.typing import Origin

from builderd.core.ids import secret_hash
from builderd.server import streams
from builderd.server.limits import CALL, Limiter, credential_of
from builderd.sessions import service as sessions
from builderd.tokens.model import Scope
from builderd.web.app import Site
from builderd.web.policy import SESSION
from builderd.web.visits import Renderer


async def test_a_tenants_pages_are_made_two_at_a_time_and_anothers_do_not_wait(
    pages: Pages, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One tenant opens 24 pages at once, which all take until the other tenant has its own."""
    made, most, served = Counter[str](), Counter[str](), asyncio.Event()
    render = Renderer.page

    async def slowly(renderer: Renderer, visit: Any, *words: Any) -> Any:
        tenant = visit.token.tenant_id
        made[tenant] += 1
        most[tenant] = max(most[tenant], made[tenant])
        if visit.request.url.query == "slow":
            await served.wait()
        made[tenant] -= 1
        return await render(renderer, visit, *words)

    monkeypatch.setattr(Renderer, "page", slowly)
    async with pages.stranger() as neighbour, asyncio.TaskGroup() as group:
        await pages.sign_in(neighbour, await pages.service.token("other", Scope.READ))
        opened = [group.create_task(pages.browser.get("/builders?slow")) for _ in range(24)]
        async with asyncio.timeout(20):
            while not most:
                await asyncio.sleep(0.01)
            assert (await neighbour.get("/builders")).status_code == 200
        served.set()
    assert {task.result().status_code for task in opened} == {200}
    assert sorted(most.values()) == [1, 2]


async def test_session_that_was_signed_out_takes_no_more_turns_of_its_tenant(pages: Pages) -> None:
    limiter, site = Limiter(), Site(pages.service.app, pages.web)

    async def listener(scope: Any, receive: Any, send: Any) -> None:
        connection: Any = Mock(address="192.0.2.1")
        scope["state"] = {CALL: limiter.begin(connection, credential_of(scope["headers"]))}
        await site(scope, receive, send)

    secret = pages.browser.cookies[SESSION.plain_name]
    headers = {"Cookie": f"{SESSION.plain_name}={secret}"}
    async with httpx.AsyncClient(transport=httpx.ASGITransport(listener), base_url="http://builderd") as copy:
        assert (await copy.get("/builders", headers=headers)).status_code == 200
        assert limiter.tenant_of(secret_hash(secret))
        await pages.browser.post("/sign-out")
        assert (await copy.get("/builders", headers=headers)).status_code == 303
        assert limiter.tenant_of(secret_hash(secret)) is None


@pytest.mark.parametrize("name", [SESSION.plain_name, SESSION.secure_name])
def test_listener_knows_the_cookie_of_a_session(name: str) -> None:
    assert credential_of([(b"cookie", f"theme=dark; {name}=secret".encode())]) == secret_hash("secret")


async def test_a_sessions_last_use_is_recorded(pages: Pages, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "TOUCH_INTERVAL", timedelta())
    secret = pages.browser.cookies[SESSION.plain_name]
    assert secret
    before = await pages.service.store.read(lambda uow: uow.sessions.by_secret_hash(secret_hash(secret)))
    assert (await pages.browser.get("/builders")).status_code == 200
    after = await pages.service.store.read(lambda uow: uow.sessions.by_secret_hash(secret_hash(secret)))
    assert before is not None
    assert after is not None
    assert after.last_used_at > before.last_used_at


PATIENCE = 60


@pytest.fixture
async def terminal(pages: Pages, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[ClientConnection]:
    monkeypatch.setattr(streams, "GUARD_SECONDS", 0.05)
    pages.service.engine.answer("/bin/bash --login", Answer(echoes=True))
    await pages.create("my-api")
    cookie = f"{SESSION.plain_name}={pages.browser.cookies[SESSION.plain_name]}"
    async with listening(Site(pages.service.app, pages.web)) as url:  # type: ignore[arg-type]
        place = f"{url.replace('http', 'ws')}/builders/my-api/terminal/session"
        async with connect(
            place, origin=Origin(url), additional_headers={"Cookie": cookie}, proxy=None, open_timeout=PATIENCE
        ) as socket:
            yield socket


async def echoed(terminal: ClientConnection) -> None:
    """Wait until what is typed is printed."""
    async with asyncio.timeout(PATIENCE):
        await terminal.send(b"echo")
        assert await terminal.recv() == b"echo"


async def code(terminal: ClientConnection) -> int | None:
    """Return the code that it is closed with."""
    async with asyncio.timeout(PATIENCE):
        with suppress(ConnectionClosed):
            async for _ in terminal:
                pass
    return terminal.close_code


async def test_a_session_that_ends_takes_its_terminal_along(pages: Pages, terminal: ClientConnection) -> None:
    await echoed(terminal)
    await pages.browser.post("/sign-out")
    assert await code(terminal) == streams.POLICY
