"""A real proxy on a port of its own, apps as processes behind it, and visitors in front."""

from __future__ import annotations

import asyncio
import contextlib
import random
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import pytest
from tests.previews.visitor import PATIENCE, Visitor

from builderd.core.errors import EngineUnavailable
from builderd.core.ids import BuilderId, new_id, secret_hash
from builderd.previews.haproxy.options import ProxyOptions, Timeouts
from builderd.previews.haproxy.previews import HaproxyPreviews
from builderd.previews.model import Address, PreviewActivity, Route, RouteState

T = TypeVar("T")

APP = Path(__file__).with_name("app.py")
TOKEN = "bds_the-right-token"
BUILDER = BuilderId(new_id())


class App:
    """A process that listens once this exists."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.port = 0
        self.start()

    def start(self) -> None:
        """Start it, once more if it has ended, on the same port."""
        argv = (sys.executable, str(APP), str(self.port), self.name)
        self.process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.port = int(self.process.stdout.readline())

    def stop(self) -> None:
        self.process.kill()
        self.process.communicate()

    @property
    def address(self) -> Address:
        return Address("127.0.0.1", self.port)


class Proxy:
    """The adapter, as a service would use it, from tests that block."""

    def __init__(self, **options: Any) -> None:
        # Short, because a Unix socket's path is: pytest's own directories may be too long.
        self._place = Path(tempfile.mkdtemp(prefix="previews-"))
        self.directory = self._place / "p"
        self._any_port = "port" not in options
        self.options = ProxyOptions(**{"port": free_port(), "threads": 2, "timeouts": Timeouts(drain=1), **options})
        self._runner = asyncio.Runner()
        self.previews = self.service()

    def service(self, **changes: Any) -> HaproxyPreviews:
        """Make the state of a new service on the same data directory."""
        return HaproxyPreviews(self.directory, replace(self.options, **changes))

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self._runner.run(work)

    def start(self) -> Proxy:
        """Start or adopt; on yet another port when somebody was quicker to take a free one."""
        while True:
            try:
                self.run(self.previews.start())
            except EngineUnavailable as error:
                if not (self._any_port and "taken" in error.message):
                    raise
                tls_port = self.options.tls_port and free_port()
                self.options = replace(self.options, port=free_port(), tls_port=tls_port)
                self.previews = self.service()
            else:
                self._any_port = False
                return self

    def put(self, route: Route) -> Route:
        self.run(self.previews.put(route))
        return route

    def open(self, app: App, *, private: bool = False, host: str | None = None) -> str:
        """A new host that leads to the app."""
        return self.put(route_to(app, private=private, host=host)).host

    def closed(self, state: RouteState, *, private: bool = False) -> str:
        """A new host without an app."""
        owner = _ownership(private=private)
        return self.put(Route(new_host(), state, None, builder_id=BUILDER, **owner)).host

    def activity(self) -> Mapping[str, PreviewActivity]:
        return self.run(self.previews.activity())

    @property
    def visitor(self) -> Visitor:
        return Visitor(self.options.port)

    def close(self) -> None:
        self.run(self.previews.down())
        self._runner.close()
        shutil.rmtree(self._place)


def new_host() -> str:
    return f"app-{secrets.token_hex(4)}.localhost"


def route_to(app: App, *, private: bool = False, host: str | None = None) -> Route:
    owner = _ownership(private=private)
    return Route(host or new_host(), RouteState.OPEN, app.address, builder_id=BUILDER, **owner)


def _ownership(*, private: bool) -> dict[str, Any]:
    return {"token_hash" if private else "owner_hash": secret_hash(TOKEN)}


def free_port() -> int:
    """Below the range from which connections that go out take theirs; it may be taken by the time that it is used."""
    while True:
        port = random.randrange(20_000, 32_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def eventually(is_true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not is_true():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


@pytest.fixture(scope="module")
def proxy() -> Iterator[Proxy]:
    """One for all tests of a module; each takes hosts of its own."""
    started = Proxy()
    try:
        yield started.start()
    finally:
        started.close()


@pytest.fixture(scope="module")
def app() -> Iterator[App]:
    started = App("app")
    yield started
    started.stop()


@pytest.fixture(scope="module")
def neighbour() -> Iterator[App]:
    started = App("neighbour")
    yield started
    started.stop()


@pytest.fixture
def make_proxy() -> Iterator[Callable[..., Proxy]]:
    """Proxies of other options, each gone when the test ends; not started yet."""
    made: list[Proxy] = []

    def make(**options: Any) -> Proxy:
        made.append(Proxy(**options))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture
def make_app() -> Iterator[Callable[[str], App]]:
    made: list[App] = []

    def make(name: str) -> App:
        made.append(App(name))
        return made[-1]

    yield make
    for one in made:
        one.stop()
