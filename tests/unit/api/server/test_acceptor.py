"""The acceptor: in which order connections of a flood begin, and which of them are closed."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from tests.patience import patience

from builderd.api.server import acceptor
from builderd.api.server.acceptor import Acceptor
from builderd.api.server.fair_queue import RequestStarts
from builderd.domain.ids import TenantId, secret_hash
from builderd.operations.proxy_header import build

DEADLINE = patience(30)
KNOWN = b"GET / HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer known\r\n\r\n"
STRANGE = b"GET / HTTP/1.1\r\nHost: a\r\nCookie: other\r\nAuthorization: Bearer guess\r\n\r\n"


class Begun(asyncio.Protocol):
    """Notes what each connection sends first, in the order in which they began."""

    def __init__(self, seen: list[bytes]) -> None:
        self._seen = seen

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._number = len(self._seen)
        self._seen.append(b"")

    def data_received(self, data: bytes) -> None:
        self._seen[self._number] += data


class Flooded:
    """An acceptor, its clients, and what has begun."""

    def __init__(self, listener: socket.socket) -> None:
        self.listener = listener
        self.begun: list[bytes] = []
        self.clients: list[socket.socket] = []
        starts = RequestStarts()
        starts.learn(secret_hash("Bearer known"), TenantId("acme"))
        self.acceptor = Acceptor(listener, lambda: Begun(self.begun), starts)

    def connect(self, content: bytes = b"") -> socket.socket:
        """Connect while the event loop does something else: the kernel does it alone."""
        made = socket.socket(self.listener.family)
        made.connect(self.listener.getsockname())
        made.sendall(content)
        made.setblocking(False)
        self.clients.append(made)
        return made

    async def until(self, check: Callable[[], bool]) -> None:
        async with asyncio.timeout(DEADLINE):
            while not check():
                await asyncio.sleep(0)


def is_closed(client: socket.socket) -> bool:
    try:
        return client.recv(1) == b""
    except BlockingIOError:
        return False
    except ConnectionError:
        return True


@asynccontextmanager
async def flooded(listener: socket.socket | None = None) -> AsyncIterator[Flooded]:
    with listener or socket.create_server(("127.0.0.1", 0), backlog=2048) as listening:
        listening.setblocking(False)
        made = Flooded(listening)
        try:
            yield made
        finally:
            made.acceptor.close()
            for client in made.clients:
                client.close()


async def test_connection_with_a_known_token_begins_before_the_flood_that_came_earlier() -> None:
    async with flooded() as some:
        for _ in range(300):
            some.connect(STRANGE)
        some.connect(KNOWN)
        await some.until(lambda: KNOWN in some.begun)
        assert some.begun.index(KNOWN) < 30
        await some.until(lambda: some.begun.count(STRANGE) == 300)


async def test_only_so_many_of_an_address_wait_and_the_oldest_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(acceptor, "MAX_WAITING", 20)
    async with flooded() as some:
        made = [some.connect(STRANGE) for _ in range(200)]
        newest = made[-1]
        await some.until(lambda: sum(map(is_closed, made)) > 100)
        await some.until(lambda: sum(map(is_closed, made)) + some.begun.count(STRANGE) == 200)
        assert not is_closed(newest)


async def test_silent_connections_begin_too_and_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(acceptor, "MAX_SILENT", 50)
    async with flooded() as some:
        made = [some.connect() for _ in range(300)]
        await some.until(lambda: sum(map(is_closed, made)) + len(some.begun) == 300)
        assert len(some.begun) >= 50
        assert not is_closed(made[-1])
        made[-1].sendall(KNOWN)
        await some.until(lambda: KNOWN in some.begun)


async def test_a_token_that_comes_after_its_connection_was_accepted_is_seen() -> None:
    async with flooded() as some:
        for _ in range(200):
            some.connect(STRANGE)
        late = some.connect()
        some.acceptor._accept()
        late.sendall(KNOWN)
        await some.until(lambda: KNOWN in some.begun)
        assert some.begun.index(KNOWN) < 30


async def test_addresses_that_the_proxy_names_take_turns(tmp_path_factory: pytest.TempPathFactory) -> None:
    """All of them come over one Unix socket."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path_factory.mktemp("a") / "s"))
    listener.listen(2048)
    other = build(("192.0.2.2", 1), {}) + STRANGE
    async with flooded(listener) as some:
        for _ in range(300):
            some.connect(build(("192.0.2.1", 1), {}) + STRANGE)
        some.connect(other)
        some.connect(b"\r\n\r\n\0\r\nQUIT\nno header at all")
        await some.until(lambda: other in some.begun)
        assert some.begun.index(other) < 30
        await some.until(lambda: len(some.begun) == 302)


async def test_accepting_goes_on_after_descriptors_ran_out(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(acceptor, "RETRY_SECONDS", 0.01)

    class Exhausted(socket.socket):
        tries = 0

        def accept(self) -> tuple[socket.socket, object]:
            self.tries += 1
            if self.tries < 3:
                raise OSError(errno.EMFILE, "Too many open files")
            return super().accept()

    with socket.create_server(("127.0.0.1", 0)) as made:
        async with flooded(Exhausted(fileno=made.detach())) as some:
            some.connect(KNOWN)
            await some.until(lambda: KNOWN in some.begun)
            assert caplog.text.count("accepting a connection failed, retrying delay=0.01") == 2


async def test_connections_that_wait_are_closed_with_the_acceptor() -> None:
    async with flooded() as some:
        made = [*(some.connect(STRANGE) for _ in range(50)), *(some.connect() for _ in range(10))]
        some.acceptor._accept()
        some.acceptor.close()
        assert sum(map(is_closed, made)) >= 59
