"""Requests wait while their app is frozen for a copy of its disk: it accepts no connections."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace

import pytest
from tests.integration.previews.waking_service import PATIENCE, Service, fetch, serving, visit
from tests.previews.proxy import TOKEN, App, new_host, route_to

from builderd.domain.ids import secret_hash
from builderd.domain.previews import Address, Route, RouteState

pytestmark = pytest.mark.haproxy

#: An app of Python's http.server has a listen backlog of five, and answers one request at a time.
SMALL = """\
from http.server import BaseHTTPRequestHandler, HTTPServer

class App(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass

server = HTTPServer(("127.0.0.1", 0), App)
print(server.server_port, flush=True)
server.serve_forever()
"""
RATE = 50
#: The proxy dials an app for two seconds. A dropped connection is tried again after one second, and then after three.
FROZEN_SECONDS = 3.2


class SmallApp:
    def __init__(self) -> None:
        self.process = subprocess.Popen((sys.executable, "-c", SMALL), stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.address = Address("127.0.0.1", int(self.process.stdout.readline()))

    @contextmanager
    def frozen(self) -> Iterator[None]:
        self.process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def small_app() -> Iterator[SmallApp]:
    app = SmallApp()
    yield app
    app.stop()


@pytest.fixture
async def service() -> AsyncIterator[Service]:
    async with serving() as made:
        yield made


async def opened(service: Service, address: Address) -> Route:
    route = Route(new_host(), RouteState.OPEN, address, owner_hash=secret_hash(TOKEN))
    await service.previews.put(route)
    return route


@asynccontextmanager
async def visits(service: Service, host: str) -> AsyncIterator[Counter[int]]:
    """So many visits a second, each with a connection of its own, until the block ends; statuses of their answers."""
    statuses: Counter[int] = Counter()
    over = asyncio.Event()

    async def one() -> None:
        statuses[await fetch(service.options.port, host)] += 1

    async def come() -> None:
        begun, sent = time.monotonic(), 0
        async with asyncio.TaskGroup() as coming:
            while not over.is_set():
                coming.create_task(one())
                sent += 1
                await asyncio.sleep(max(0.0, begun + sent / RATE - time.monotonic()))

    task = asyncio.create_task(come())
    try:
        yield statuses
    finally:
        over.set()
        async with asyncio.timeout(PATIENCE):
            await task


async def test_no_visit_fails_while_its_app_is_frozen_for_longer_than_it_is_dialled(
    service: Service, small_app: SmallApp
) -> None:
    route = await opened(service, small_app.address)
    async with visits(service, route.host) as statuses:
        await asyncio.sleep(0.2)
        async with service.previews.paused_at(small_app.address.ip):
            with small_app.frozen():
                await asyncio.sleep(FROZEN_SECONDS)
        await asyncio.sleep(0.2)
    assert set(statuses) == {200}
    assert statuses[200] > FROZEN_SECONDS * RATE / 2


async def test_request_waits_for_the_end_of_the_pause_and_the_route_stays(
    service: Service, make_app: Callable[[str], App]
) -> None:
    app = make_app("app")
    route = route_to(app)
    await service.previews.put(route)
    async with service.previews.paused_at(app.address.ip), service.previews.paused_at(app.address.ip):
        waiting = asyncio.create_task(visit(service.visitor.get, route.host))
        await service.knocked(route.host)
        assert await service.previews.get(route.host) == route
        # Put again, as for another visibility: it leads to the same app.
        await service.previews.put(replace(route, builder_id=None))
        await asyncio.sleep(0.1)
        assert not waiting.done()
    assert (await waiting).json["name"] == "app"
    assert (await visit(service.visitor.get, route.host)).status == 200


async def test_route_that_leaves_the_address_ends_its_pause(service: Service, make_app: Callable[[str], App]) -> None:
    # Another address of this machine, which nobody dials.
    route = await opened(service, Address("127.0.0.7", 1))
    async with service.previews.paused_at("127.0.0.7"):
        waiting = asyncio.create_task(visit(service.visitor.get, route.host))
        await service.knocked(route.host)
        await service.wake(route.host, make_app("next"))
        assert (await waiting).json["name"] == "next"
    assert (await visit(service.visitor.get, route.host)).json["name"] == "next"


async def test_other_apps_are_served_during_the_pause(service: Service, make_app: Callable[[str], App]) -> None:
    host = route_to(app := make_app("other")).host
    await service.wake(host, app)
    async with service.previews.paused_at("127.0.0.7"):
        assert (await visit(service.visitor.get, host)).status == 200


async def test_next_service_ends_the_pause_of_one_that_was_killed(
    service: Service, make_app: Callable[[str], App]
) -> None:
    route = route_to(app := make_app("app"))
    await service.previews.put(route)
    killed = service.previews
    async with killed.paused_at(app.address.ip):
        waiting = asyncio.create_task(visit(service.visitor.get, route.host))
        await service.knocked(route.host)
        await service.die()
        # It does nothing more.
        killed._known = None
        await service.come_back()
        await service.previews.put(route)
        assert (await waiting).status == 200


async def test_proxy_that_is_started_anew_has_the_pause(service: Service, make_app: Callable[[str], App]) -> None:
    route = route_to(app := make_app("app"))
    await service.previews.put(route)
    async with service.previews.paused_at(app.address.ip):
        await service.previews.start()
        waiting = asyncio.create_task(visit(service.visitor.get, route.host))
        await service.knocked(route.host)
        assert not waiting.done()
    assert (await waiting).status == 200


async def test_private_preview_asks_for_its_token_during_the_pause(
    service: Service, make_app: Callable[[str], App]
) -> None:
    route = route_to(app := make_app("app"), private=True)
    await service.previews.put(route)
    async with service.previews.paused_at(app.address.ip):
        assert (await visit(service.visitor.get, route.host)).status == 401
        waiting = asyncio.create_task(visit(service.visitor.get, route.host, "/head", f"X-Service-Token: {TOKEN}"))
        await service.knocked(route.host)
    assert (await waiting).status == 200


async def test_pause_before_the_start_of_the_proxy_does_nothing(service: Service) -> None:
    async with service.another().paused_at("127.0.0.1"):
        pass
