"""An app that is frozen for a copy of its disk accepts no connections: the kernel tries them again."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import pytest
from tests.integration.previews.waking_service import PATIENCE, Service, fetch, serving
from tests.previews.proxy import new_host

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
#: A dropped connection is tried again after 1, 3 and 7 s.
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


async def test_no_visit_fails_while_its_app_is_frozen(service: Service, small_app: SmallApp) -> None:
    route = Route(new_host(), RouteState.OPEN, small_app.address)
    await service.previews.put(route)
    async with visits(service, route.host) as statuses:
        await asyncio.sleep(0.2)
        with small_app.frozen():
            await asyncio.sleep(FROZEN_SECONDS)
        await asyncio.sleep(0.2)
    assert set(statuses) == {200}
    assert statuses[200] > FROZEN_SECONDS * RATE / 2
