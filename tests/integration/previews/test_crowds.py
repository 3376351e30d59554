"""A crowd that waited for an app is let in in waves, as fast as the app answers."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from tests.integration.previews.waking_service import (
    PATIENCE,
    Service,
    at_the_apps_pace,
    change,
    serving,
    until,
    visit,
)
from tests.previews.proxy import TOKEN, App
from tests.previews.visitor import Answer, Visitor, ask

from builderd.domain.ids import secret_hash
from builderd.domain.previews import Address, Route, RouteState

pytestmark = pytest.mark.haproxy

#: So many come at once, and so many of them are let in at once.
CROWD, WAVE = 24, 4


#: Requests that an app which answers them in turn has done after the 2 s for which the app once set the pace.
SLOW_CROWD, SLOW_SECONDS = 100, 0.04


class Slow(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        time.sleep(SLOW_SECONDS)
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def slow_app() -> Iterator[Address]:
    with HTTPServer(("127.0.0.1", 0), Slow) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield Address("127.0.0.1", server.server_port)
        server.shutdown()
        thread.join()


@pytest.fixture
async def nearly_full(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Service]:
    """A crowd goes on as the app answers, however long that takes. In one thread, nobody is let in late.

    In two, the one that lets in may be ahead of the other's visitors, who are counted as they set out for the app.
    """
    at_the_apps_pace(monkeypatch)
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(CROWD + 1))
    async with serving(threads=1) as made:
        yield made


def straight(app: App, path: str) -> Answer:
    """The app's own answer, past the proxy."""
    with Visitor(app.port).dial() as connection:
        return ask(connection, "app", path)


async def asked(app: App, number: int) -> None:
    """Wait until so many requests stand at the app's gate or have gone through it."""

    async def are() -> bool:
        seen = (await visit(straight, app, "/head?/gate")).json["asked"]
        assert seen <= number, "more were let in"
        return bool(seen == number)

    await until(are)


async def let(app: App, number: int) -> None:
    """Through the gate."""
    assert (await visit(straight, app, f"/let?{number}")).status == 200


async def crowd(service: Service, host: str, path: str = "/gate") -> list[asyncio.Task[Answer]]:
    """Return the visits of a crowd, once all of them are held."""
    many = [asyncio.create_task(visit(service.visitor.get, host, path)) for _ in range(CROWD)]
    await service.knocked(host)
    await service.held(CROWD)
    return many


async def test_a_crowd_that_is_being_let_in_goes_where_the_route_has_gone_meanwhile(
    nearly_full: Service, make_app: Callable[[str], App]
) -> None:
    first, second = make_app("first"), make_app("second")
    host = await nearly_full.asleep()
    many = await crowd(nearly_full, host)
    await nearly_full.wake(host, first)
    await asked(first, WAVE)
    await nearly_full.wake(host, second)
    for app in (first, second):
        await let(app, CROWD)
    names = [answer.json["name"] for answer in [await one for one in many]]
    assert Counter(names) == {"first": WAVE, "second": CROWD - WAVE}


@pytest.mark.parametrize("waves", [1, 2])
async def test_a_crowd_that_is_being_let_in_waits_on_where_it_is_held_again(
    nearly_full: Service, make_app: Callable[[str], App], waves: int
) -> None:
    first, second = make_app("first"), make_app("second")
    host = await nearly_full.asleep(state=RouteState.PAUSED)
    many = await crowd(nearly_full, host)
    await nearly_full.wake(host, first)
    await asked(first, WAVE)
    for wave in range(1, waves):
        await let(first, WAVE)
        await asked(first, WAVE * (wave + 1))
    # The map is looked at each millisecond, by the thread that answers: it has been by the second answer.
    for _ in range(2):
        await asyncio.sleep(0.01)
        await nearly_full.ask("show info")
    await nearly_full.asleep(state=RouteState.PAUSED, host=host)
    nearly_full.knocks.clear()
    await let(first, CROWD)
    # Until they wait anew, or have gone elsewhere.
    again = asyncio.create_task(nearly_full.knocked(host))
    await asyncio.wait((again, asyncio.gather(*many)), return_when=asyncio.FIRST_COMPLETED)
    await nearly_full.wake(host, second)
    await let(second, CROWD)
    names = [answer.json.get("name") for answer in [await one for one in many]]
    assert Counter(names) == {"first": WAVE * waves, "second": CROWD - WAVE * waves}, "nobody is sent away"


async def test_crowd_is_released_at_the_pace_of_an_app_that_answers_one_at_a_time(
    monkeypatch: pytest.MonkeyPatch, slow_app: Address
) -> None:
    """Connections beyond its listen backlog of five are dropped, and many requests of a crowd would fail."""
    at_the_apps_pace(monkeypatch)
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(SLOW_CROWD + 1))
    async with serving(threads=1) as service:
        host = await service.asleep(state=RouteState.PAUSED)
        many = asyncio.gather(*(visit(service.visitor.get, host) for _ in range(SLOW_CROWD)))
        await service.knocked(host)
        await service.held(SLOW_CROWD)
        await service.previews.put(Route(host, RouteState.OPEN, slow_app, owner_hash=secret_hash(TOKEN)))
        seen = []
        while not many.done():
            seen.append(await service.previews.open_requests(host))
            await asyncio.sleep(0.02)
        assert Counter([answer.status for answer in await many]) == {200: SLOW_CROWD}
        assert 0 < max(seen) <= WAVE, "room is left for visitors who come meanwhile"


async def test_next_wave_of_a_crowd_waits_until_the_last_one_has_set_out(
    make_app: Callable[[str], App], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread that releases is ahead, on a busy machine, of those whose requests are to be counted."""
    app = make_app("counted")
    at_the_apps_pace(monkeypatch)
    change(monkeypatch, "request.queue:pop_wait()", "request.queue:pop_wait()\n  core.msleep(50)")
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(CROWD + 1))
    async with serving(threads=1) as service:
        host = await service.asleep()
        many = await crowd(service, host)
        await service.wake(host, app)
        await asked(app, WAVE)
        await asyncio.sleep(0.2)
        await asked(app, WAVE)
        await let(app, CROWD)
        assert [(await one).status for one in many] == [200] * CROWD


@pytest.mark.parametrize("resets", [False, True])
async def test_wave_of_visitors_who_have_left_does_not_hold_the_next_one(
    app: App, monkeypatch: pytest.MonkeyPatch, *, resets: bool
) -> None:
    """Requests of those who left go on to nobody; the wait for a wave that does not set out is no part of it."""
    at_the_apps_pace(monkeypatch)
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(CROWD + 1))
    async with serving(threads=1) as service:
        host = await service.asleep()
        with contextlib.ExitStack() as leaving:
            for number in range(WAVE):
                left = leaving.enter_context(service.visitor.dial())
                left.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", resets, 0))
                left.sendall(f"GET / HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
                await service.held(number + 1)
            many = [asyncio.create_task(visit(service.visitor.get, host)) for _ in range(2 * WAVE)]
            await service.held(3 * WAVE)
        await service.wake(host, app)
        async with asyncio.timeout(PATIENCE):
            assert [(await one).status for one in many] == [200] * len(many)


async def test_crowd_is_spread_over_time_where_the_app_takes_long(
    make_app: Callable[[str], App], monkeypatch: pytest.MonkeyPatch
) -> None:
    app = make_app("counted")
    change(monkeypatch, "WAVE_WAIT = 1000", "WAVE_WAIT = 50")
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(CROWD + 1))
    async with serving() as service:
        host = await service.asleep()
        many = await crowd(service, host)
        await service.wake(host, app)
        # No request ends before all are there.
        await asked(app, CROWD)
        await let(app, CROWD)
        assert [(await one).status for one in many] == [200] * CROWD
