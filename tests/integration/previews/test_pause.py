"""Requests wait for an app that is about to come (back), and one word of it is enough for all of them."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time
from collections.abc import AsyncIterator

import pytest
from tests.integration.previews.waking_service import (
    PATIENCE,
    Service,
    change,
    serving,
    visit,
)
from tests.previews.proxy import TOKEN, App
from tests.previews.visitor import BROWSER

from builderd.core.ids import secret_hash
from builderd.previews.haproxy import pause
from builderd.previews.model import Route, RouteState

pytestmark = pytest.mark.haproxy


@pytest.fixture
async def service() -> AsyncIterator[Service]:
    async with serving() as made:
        yield made


async def test_a_request_to_what_sleeps_waits_until_it_is_awake(service: Service, app: App) -> None:
    host = await service.asleep()
    waiting = asyncio.create_task(visit(service.visitor.get, host))
    await service.knocked(host)
    await asyncio.sleep(0.2)
    assert not waiting.done()
    await service.wake(host, app)
    begun = time.monotonic()
    assert (await waiting).json["name"] == "app"
    assert time.monotonic() - begun < PATIENCE / 2
    assert service.knocks == [host]


async def test_number_of_waiting_requests_is_limited_and_a_left_one_makes_room(
    app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    change(monkeypatch, "MAX_PAUSED = 2000", "MAX_PAUSED = 2")
    # Long enough for a machine that stalls while others come.
    monkeypatch.setattr(pause, "MAX_PAGE_PAUSE", 8)
    async with serving() as service:
        host = await service.asleep()
        first = asyncio.create_task(visit(service.visitor.get, host))
        await service.paused(1)
        # One that reads pages waits but for a moment.
        browser = asyncio.create_task(visit(service.visitor.get, host, "/", f"Accept: {BROWSER}"))
        await service.paused(2)
        assert (await visit(service.visitor.get, host)).status == 503
        assert not browser.done()
        assert (await browser).status == 503
        await service.paused(1)
        later = asyncio.create_task(visit(service.visitor.get, host))
        await service.paused(2)
        await service.wake(host, app)
        assert [(await one).status for one in (first, later)] == [200, 200]


@pytest.mark.parametrize("accept", ["application/json", BROWSER], ids=["client", "browser"])
async def test_paused_requests_are_rejected_without_capacity(
    app: App, monkeypatch: pytest.MonkeyPatch, accept: str
) -> None:
    # Nobody runs out of time but by what is done here.
    monkeypatch.setattr(pause, "REJECT_SECONDS", 600)
    monkeypatch.setattr(pause, "MAX_PAGE_PAUSE", 600)
    async with serving() as service:
        host = await service.asleep()
        many = [asyncio.create_task(visit(service.visitor.get, host, "/", f"Accept: {accept}")) for _ in range(5)]
        await service.knocked(host)
        await service.paused(5)
        await service.previews.reject_visitors(host)
        for answer in [await one for one in many]:
            assert (answer.status, answer.header("retry-after")) == (503, "10")
            assert "there is no room to start it now" in answer.text
        knocks = service.knocks.count(host)
        for _ in range(20):
            assert (await visit(service.visitor.get, host)).status == 503
        assert service.knocks.count(host) == knocks, "who comes at once is turned away too, and nobody is told of it"
        away, now = service.previews._paused._rejected, asyncio.get_running_loop().time()
        page, end = away[host]
        assert now < end <= now + 600
        away[host] = page, now
        service.knocks.clear()
        again = asyncio.create_task(visit(service.visitor.get, host))
        await service.knocked(host)
        await service.wake(host, app)
        assert (await again).status == 200, "who comes later waits anew"


async def test_started_app_ends_the_rejection(service: Service, app: App) -> None:
    host = await service.asleep()
    await service.previews.reject_visitors(host)
    await service.asleep(host=host, state=RouteState.PAUSED)
    waiting = asyncio.create_task(visit(service.visitor.get, host))
    await service.knocked(host)
    await service.wake(host, app)
    assert (await waiting).status == 200


async def test_request_during_a_map_change_is_served(
    service: Service, app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    host, apply = await service.asleep(), service.previews._apply

    async def slowly(changed: str) -> None:
        await service.knocked(host)
        await apply(changed)

    monkeypatch.setattr(service.previews, "_apply", slowly)
    waking = asyncio.create_task(service.wake(host, app))
    await asyncio.sleep(0.05)
    assert (await visit(service.visitor.get, host)).status == 200
    await waking
    assert host not in service.previews._paused._connections, "it would be woken again as soon as it sleeps"


async def test_waiting_request_is_reported_again_after_a_freeze(service: Service, app: App) -> None:
    host = await service.asleep(state=RouteState.PAUSED)
    waiting = asyncio.create_task(visit(service.visitor.get, host))
    await service.knocked(host)
    owner = secret_hash(TOKEN)
    for state in (RouteState.PAUSED, RouteState.ASLEEP):
        await service.previews.put(Route(host, state, None, owner_hash=owner))
        await asyncio.sleep(0.1)
    assert service.knocks == [host, host]
    await service.wake(host, app)
    assert (await waiting).status == 200
    await service.previews.put(Route(host, RouteState.ASLEEP, None, owner_hash=owner))
    await asyncio.sleep(0.1)
    assert service.knocks == [host, host], "nobody waits any more"


async def test_body_of_a_paused_request_is_kept(service: Service, app: App) -> None:
    host, body = await service.asleep(), bytes(range(256)) * 40_000  # 10 MB
    head = f"POST /upload HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
    waiting = asyncio.create_task(asyncio.to_thread(service.visitor.send, head.encode() + body))
    await service.knocked(host)
    await asyncio.sleep(0.3)
    await service.wake(host, app)
    seen = (await waiting).json
    assert (seen["size"], seen["sha256"]) == (len(body), hashlib.sha256(body).hexdigest())


async def test_a_browser_gets_a_page_that_looks_again_by_itself(service: Service) -> None:
    host = await service.asleep()
    begun = time.monotonic()
    page = await visit(service.visitor.browse, host)
    assert 1.9 < time.monotonic() - begun < PATIENCE
    assert (page.status, page.header("retry-after")) == (503, "2")
    assert "Waking up" in page.text
    assert '<meta http-equiv="refresh" content="2">' in page.text


async def test_a_browser_s_form_waits_as_long_as_a_call(service: Service, app: App) -> None:
    host = await service.asleep()
    form = asyncio.create_task(
        visit(service.visitor.get, host, "/head", f"Accept: {BROWSER}", "Content-Length: 0", method="POST")
    )
    await service.knocked(host)
    await asyncio.sleep(2.5)
    assert not form.done()
    await service.wake(host, app)
    assert (await form).status == 200


@pytest.mark.parametrize(
    ("state", "title"), [(RouteState.STOPPED, "stopped by its owner"), (RouteState.CAPPED, "spending cap")]
)
async def test_paused_request_is_answered_when_the_start_is_cancelled(
    service: Service, state: RouteState, title: str
) -> None:
    host = await service.asleep()
    waiting = asyncio.create_task(visit(service.visitor.get, host))
    await service.knocked(host)
    await service.previews.put(Route(host, state, owner_hash=secret_hash(TOKEN)))
    answer = await waiting
    assert (answer.status, answer.json["code"]) == (503, "stopped")
    assert title in answer.json["message"]


async def test_paused_request_of_a_deleted_builder_is_404(service: Service) -> None:
    host = await service.asleep()
    waiting = asyncio.create_task(visit(service.visitor.get, host))
    await service.knocked(host)
    await service.previews.remove(host)
    assert (await waiting).status == 404


async def test_a_service_that_is_killed_while_it_wakes_is_asked_again(service: Service, app: App) -> None:
    host = await service.asleep()
    waiting = asyncio.create_task(visit(service.visitor.get, host))
    await service.knocked(host)
    await service.die()
    service.knocks.clear()
    await service.come_back()
    await service.knocked(host)
    await service.wake(host, app)
    assert (await waiting).status == 200


async def test_browser_gets_a_page_without_the_service(service: Service) -> None:
    host = await service.asleep()
    await service.die()
    page = await visit(service.visitor.browse, host)
    assert (page.status, page.header("retry-after")) == (503, "5")
    assert "Cannot be started now" in page.text
    assert '<meta http-equiv="refresh" content="5">' in page.text, "it asks again by itself"


# Attacks


async def test_a_stranger_does_not_wake_what_is_private(service: Service) -> None:
    host = await service.asleep(private=True)
    for headers in ((), ("X-Service-Token: wrong",), (f"Accept: {BROWSER}",)):
        assert (await visit(service.visitor.get, host, "/", *headers)).status == 401
    assert service.knocks == []


async def test_request_with_the_token_wakes_the_builder(service: Service, app: App) -> None:
    host = await service.asleep(private=True)
    waiting = asyncio.create_task(visit(service.visitor.get, host, "/head", f"X-Service-Token: {TOKEN}"))
    await service.knocked(host)
    await service.wake(host, app, private=True)
    assert (await waiting).status == 200


async def test_paused_request_needs_the_token_once_private(service: Service, app: App) -> None:
    host = await service.asleep()
    waiting = asyncio.create_task(visit(service.visitor.get, host))
    await service.knocked(host)
    await service.wake(host, app, private=True)
    assert (await waiting).status == 503
    assert (await visit(service.visitor.get, host)).status == 401


@pytest.mark.parametrize(
    "host", ["unknown-00000000.localhost", "a\tb", "%0a", "x|asleep|", "[::1]", "a" * 300, "held|"]
)
async def test_unknown_host_wakes_nothing(service: Service, host: str) -> None:
    await service.asleep()
    with contextlib.suppress(IndexError):
        assert (await visit(service.visitor.get, host)).status in (400, 404)
    assert service.knocks == []


async def test_wake_socket_is_private(service: Service) -> None:
    folder = service.place / "p"
    assert folder.stat().st_mode & 0o777 == 0o700
    assert (folder / "empty" / "wake.sock").stat().st_mode & 0o077 == 0
