"""Requests wait for an app that is about to come (back), and one word of it is enough for all of them."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import shutil
import socket
import struct
import tempfile
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from tests.previews.proxy import TOKEN, App, free_port, new_host, route_to
from tests.previews.visitor import BROWSER, Answer, Visitor, ask

from builderd.adapters.previews.haproxy import pause, paused_requests, runtime_api
from builderd.adapters.previews.haproxy.options import ProxyOptions
from builderd.adapters.previews.haproxy.previews import HaproxyPreviews
from builderd.domain.ids import secret_hash
from builderd.domain.previews import Address, Route, RouteState

pytestmark = pytest.mark.haproxy

#: Against hanging only.
PATIENCE = 60
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


class Service:
    """The service's side, in a loop that goes on while visitors wait in threads."""

    def __init__(self, *, threads: int = 2) -> None:
        # Short, because a Unix socket's path is.
        self.place = Path(tempfile.mkdtemp(prefix="previews-"))
        self.options = ProxyOptions(port=free_port(), threads=threads)
        self.previews = self.another()
        self.knocks: list[str] = []
        self.visitor = Visitor(self.options.port)
        self._listening: asyncio.Task[None] | None = None

    def another(self) -> HaproxyPreviews:
        return HaproxyPreviews(self.place / "p", self.options)

    async def start(self) -> None:
        await self.previews.start()
        self._listening = asyncio.create_task(self._listen())

    async def _listen(self) -> None:
        async for host in self.previews.visitors():
            self.knocks.append(host)

    async def die(self) -> None:
        """Stop answering on its socket, as a killed service does."""
        assert self._listening
        self._listening.cancel()
        await self.previews._paused.close()
        (self.place / "p" / "empty" / "wake.sock").unlink(missing_ok=True)

    async def come_back(self) -> None:
        self.previews = self.another()
        await self.start()

    async def asleep(
        self, *, private: bool = False, state: RouteState = RouteState.ASLEEP, host: str | None = None
    ) -> str:
        owner: dict[str, Any] = {"token_hash" if private else "owner_hash": secret_hash(TOKEN)}
        route = Route(host or new_host(), state, None, **owner)
        await self.previews.put(route)
        return route.host

    async def wake(self, host: str, app: App, *, private: bool = False) -> None:
        await self.previews.put(route_to(app, private=private, host=host))

    async def knocked(self, host: str) -> None:
        async def has() -> bool:
            return host in self.knocks

        await until(has)

    async def ask(self, command: str) -> str:
        return await runtime_api.ask(self.place / "p" / "admin.sock", command)

    async def held(self, number: int) -> None:
        """Wait until so many requests are held, by the proxy's own list, which leaves out mere connections."""

        async def are() -> bool:
            return (await self.ask("show sess")).count(" be=full_") == number

        await until(are)

    async def close(self) -> None:
        if self._listening:
            self._listening.cancel()
        await self.previews.down()
        shutil.rmtree(self.place)


async def until(holds: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not await holds():
            await asyncio.sleep(0.005)


@contextlib.asynccontextmanager
async def serving(*, threads: int = 2) -> AsyncIterator[Service]:
    made = Service(threads=threads)
    try:
        await made.start()
        yield made
    finally:
        await made.close()


@pytest.fixture
async def service() -> AsyncIterator[Service]:
    async with serving() as made:
        yield made


@pytest.fixture
async def nearly_full(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Service]:
    """A crowd goes on as the app answers, however long that takes. In one thread, nobody is let in late.

    In two, the one that lets in may be ahead of the other's visitors, who are counted as they set out for the app.
    """
    at_the_apps_pace(monkeypatch)
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(CROWD + 1))
    async with serving(threads=1) as made:
        yield made


def change(monkeypatch: pytest.MonkeyPatch, line: str, other: str) -> None:
    """Change a line of the pause script."""
    script = pause.script()
    assert line in script
    monkeypatch.setattr(pause, "script", lambda: script.replace(line, other))


def at_the_apps_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Release requests as the app answers, however long that takes."""
    script, changed = pause.script(), pause.script()
    for line, other in {"WAVE_WAIT = 1000": "WAVE_WAIT = 600000", "PACED = 10000": "PACED = 600000"}.items():
        assert line in script
        changed = changed.replace(line, other)
    monkeypatch.setattr(pause, "script", lambda: changed)


async def visit(look: Callable[..., Answer], *args: Any, **options: str) -> Answer:
    return await asyncio.to_thread(look, *args, **options)


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


async def test_number_of_waiting_requests_is_limited_and_a_left_one_makes_room(
    app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    change(monkeypatch, "MAX_PAUSED = 2000", "MAX_PAUSED = 2")
    # Long enough for a machine that stalls while others come.
    monkeypatch.setattr(pause, "MAX_PAGE_PAUSE", 8)
    async with serving() as service:
        host = await service.asleep()
        first = asyncio.create_task(visit(service.visitor.get, host))
        await service.held(1)
        # One that reads pages waits but for a moment.
        browser = asyncio.create_task(visit(service.visitor.get, host, "/", f"Accept: {BROWSER}"))
        await service.held(2)
        assert (await visit(service.visitor.get, host)).status == 503
        assert not browser.done()
        assert (await browser).status == 503
        await service.held(1)
        later = asyncio.create_task(visit(service.visitor.get, host))
        await service.held(2)
        await service.wake(host, app)
        assert [(await one).status for one in (first, later)] == [200, 200]


@pytest.mark.parametrize("accept", ["application/json", BROWSER], ids=["client", "browser"])
async def test_paused_requests_are_rejected_without_capacity(
    app: App, monkeypatch: pytest.MonkeyPatch, accept: str
) -> None:
    # Nobody runs out of time but by what is done here.
    monkeypatch.setattr(paused_requests, "REJECT_SECONDS", 600)
    monkeypatch.setattr(pause, "MAX_PAGE_PAUSE", 600)
    async with serving() as service:
        host = await service.asleep()
        many = [asyncio.create_task(visit(service.visitor.get, host, "/", f"Accept: {accept}")) for _ in range(5)]
        await service.knocked(host)
        await service.held(5)
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


async def test_a_crowd_that_is_being_let_in_goes_where_the_route_has_gone_meanwhile(
    nearly_full: Service, make_app: Callable[[str], App]
) -> None:
    first, second = make_app("first"), make_app("second")
    host = await nearly_full.asleep()
    many = [asyncio.create_task(visit(nearly_full.visitor.get, host, "/gate")) for _ in range(CROWD)]
    await nearly_full.knocked(host)
    await nearly_full.held(CROWD)
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
    many = [asyncio.create_task(visit(nearly_full.visitor.get, host, "/gate")) for _ in range(CROWD)]
    await nearly_full.knocked(host)
    await nearly_full.held(CROWD)
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
        assert 0 < max(seen) < 2 * WAVE


async def test_next_wave_of_a_crowd_waits_until_the_last_one_has_set_out(
    make_app: Callable[[str], App], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread that releases is ahead, on a busy machine, of those whose requests are to be counted."""
    app = make_app("counted")
    at_the_apps_pace(monkeypatch)
    change(monkeypatch, "SET_OUT = 100", "SET_OUT = 600000")
    change(monkeypatch, "request.queue:pop_wait()", "request.queue:pop_wait()\n  core.msleep(50)")
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(CROWD + 1))
    async with serving(threads=1) as service:
        host = await service.asleep()
        many = [asyncio.create_task(visit(service.visitor.get, host, "/gate")) for _ in range(CROWD)]
        await service.knocked(host)
        await service.held(CROWD)
        await service.wake(host, app)
        await asked(app, WAVE)
        await asyncio.sleep(0.2)
        await asked(app, WAVE)
        await let(app, CROWD)
        assert [(await one).status for one in many] == [200] * CROWD


async def test_visitor_who_has_left_does_not_hold_the_next_wave(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    at_the_apps_pace(monkeypatch)
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(CROWD + 1))
    async with serving(threads=1) as service:
        host = await service.asleep()
        with service.visitor.dial() as left:
            left.sendall(f"GET / HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
            await service.held(1)
            many = [asyncio.create_task(visit(service.visitor.get, host)) for _ in range(2 * WAVE)]
            await service.held(2 * WAVE + 1)
        await service.wake(host, app)
        async with asyncio.timeout(PATIENCE):
            assert [(await one).status for one in many] == [200] * len(many)


@pytest.mark.parametrize("resets", [False, True])
async def test_wave_of_visitors_who_have_left_does_not_hold_the_next_one(
    app: App, monkeypatch: pytest.MonkeyPatch, *, resets: bool
) -> None:
    """Requests of those who left go on to nobody; the wait for a wave that does not set out is no part of it."""
    at_the_apps_pace(monkeypatch)
    change(monkeypatch, "SET_OUT = 100", "SET_OUT = 600000")
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
        many = [asyncio.create_task(visit(service.visitor.get, host, "/gate")) for _ in range(CROWD)]
        await service.knocked(host)
        await service.held(CROWD)
        await service.wake(host, app)
        # No request ends before all are there.
        await asked(app, CROWD)
        await let(app, CROWD)
        assert [(await one).status for one in many] == [200] * CROWD


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
    host, tell = await service.asleep(), service.previews._apply

    async def slowly(told: str, *, new: bool) -> None:
        await service.knocked(host)
        await tell(told, new=new)

    monkeypatch.setattr(service.previews, "_apply", slowly)
    waking = asyncio.create_task(service.wake(host, app))
    await asyncio.sleep(0.05)
    assert (await visit(service.visitor.get, host)).status == 200
    await waking
    assert host not in service.previews._paused._connections, "it would be woken again as soon as it sleeps"


async def test_paused_route_pauses_requests(service: Service, app: App) -> None:
    host = await service.asleep(state=RouteState.PAUSED)
    waiting = asyncio.create_task(visit(service.visitor.get, host))
    await asyncio.sleep(0.1)
    assert not waiting.done()
    await service.wake(host, app)
    assert (await waiting).status == 200


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


async def test_many_wait_for_one_word(service: Service, app: App) -> None:
    host = await service.asleep()
    many = [asyncio.create_task(fetch(service.options.port, host)) for _ in range(200)]
    await service.knocked(host)
    await asyncio.sleep(0.2)
    await service.wake(host, app)
    async with asyncio.timeout(PATIENCE):
        assert await asyncio.gather(*many) == [200] * 200
    assert service.knocks == [host]


async def fetch(port: int, host: str) -> int:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET /head HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
    answer = await reader.read()
    writer.close()
    return int(answer.split(b" ")[1])


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


async def test_next_service_is_notified_of_waiting_requests(service: Service, app: App) -> None:
    host = await service.asleep()
    await service.die()
    waiting = asyncio.create_task(visit(service.visitor.get, host))
    await asyncio.sleep(0.3)
    await service.come_back()
    await service.knocked(host)
    await service.wake(host, app)
    assert (await waiting).status == 200


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


async def test_a_second_sleep_wakes_like_the_first(service: Service, app: App) -> None:
    host = await service.asleep()
    for number in range(1, 6):
        waiting = asyncio.create_task(visit(service.visitor.get, host))
        async with asyncio.timeout(PATIENCE):
            while len(service.knocks) < number:
                await asyncio.sleep(0.005)
        await service.wake(host, app)
        assert (await waiting).status == 200
        await service.previews.put(Route(host, RouteState.ASLEEP, owner_hash=secret_hash(TOKEN)))


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


async def test_malformed_wake_messages_are_ignored(service: Service, app: App) -> None:
    path = service.place / "p" / "empty" / "wake.sock"
    for words in (b"", b"\n", b"\xff\xfe\n", b"x" * 100_000, b"no line"):
        _, writer = await asyncio.open_unix_connection(path)
        with contextlib.suppress(ConnectionError):
            writer.write(words)
            await writer.drain()
        writer.close()
    host = await service.asleep()
    waiting = asyncio.create_task(visit(service.visitor.get, host))
    await service.knocked(host)
    await service.wake(host, app)
    assert (await waiting).status == 200
