"""A standby's real proxy on ports of its own, and the proxy of the service that works behind it."""

from __future__ import annotations

import asyncio
import socket
import tempfile
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.previews.proxy import Proxy, free_port
from tests.previews.visitor import PATIENCE, Visitor

from builderd.adapters.previews.haproxy.forward_config import ForwardOptions
from builderd.adapters.previews.haproxy.forwarder import Forwarder, Target
from builderd.adapters.previews.haproxy.options import ProxyOptions, Receiving

SECRET = "ab" * 32
#: Client of a test, of another address than the members'.
CLIENT = "127.0.0.77"


class Standby:
    """A standby's proxy on ports of its own, used from tests that block."""

    def __init__(self, **options: Any) -> None:
        self._place = tempfile.TemporaryDirectory(prefix="standby-")
        self._runner = asyncio.Runner()
        self.forwarder = Forwarder(Path(self._place.name) / "s")
        proxy = ProxyOptions(**{"port": free_port(), "threads": 1, **options})
        self.options = ForwardOptions(proxy, free_port(), free_port(), SECRET)
        self.run(self.forwarder.run(self.options))

    def run(self, work: Coroutine[Any, Any, object]) -> None:
        self._runner.run(work)

    def lead(self, port: int, *, is_open: bool = True) -> None:
        self.run(self.forwarder.lead(Target("127.0.0.1", port, api=is_open, streams=is_open)))

    @property
    def visitor(self) -> Visitor:
        return Visitor(self.options.proxy.port)

    def close(self) -> None:
        self.run(self.forwarder.end())
        self._runner.close()
        self._place.cleanup()


@pytest.fixture
def make_standby() -> Iterator[Callable[..., Standby]]:
    made: list[Standby] = []

    def make(**options: Any) -> Standby:
        made.append(Standby(**options))
        return made[-1]

    yield make
    for one in made:
        one.close()


def receiving(proxy: Proxy) -> Proxy:
    proxy.start()
    proxy.run(proxy.previews.receive(Receiving("127.0.0.1", free_port(), SECRET), ["127.0.0.1"]))
    return proxy


def port_of(proxy: Proxy) -> int:
    found = proxy.previews._options.receiving
    assert found is not None
    return found.port


def dial(port: int, source: str = CLIENT) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), PATIENCE, (source, 0))
