"""The acceptor: in which order connections of a flood begin, and which of them are closed."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from tests.patience import patience
from tests.proxied import build

from builderd.api.server import acceptor, listener
from builderd.api.server.acceptor import Acceptor
from builderd.api.server.fair_queue import RequestStarts
from builderd.domain.ids import TenantId, secret_hash

DEADLINE = patience(30)
KNOWN = b"GET / HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer known\r\n\r\n"
OTHER = KNOWN.replace(b"known", b"other")
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

    def __init__(self, listener: socket.socket, *, is_proxied: bool = False) -> None:
        self.listener = listener
        self.begun: list[bytes] = []
        self.clients: list[socket.socket] = []
        starts = RequestStarts()
        starts.learn(secret_hash("known"), TenantId("acme"))
        starts.learn(secret_hash("other"), TenantId("neighbour"))
        self.acceptor = Acceptor(listener, lambda: Begun(self.begun), starts, is_proxied=is_proxied)

    def connect(self, content: bytes = b"", source: str | None = None) -> socket.socket:
        """Connect while the event loop does something else: the kernel does it alone."""
        made = socket.socket(self.listener.family)
        if source is not None:
            made.bind((source, 0))
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
async def flooded(listener: socket.socket | None = None, *, is_proxied: bool = False) -> AsyncIterator[Flooded]:
    with listener or socket.create_server(("127.0.0.1", 0), backlog=2048) as listening:
        listening.setblocking(False)
        made = Flooded(listening, is_proxied=is_proxied)
        try:
            yield made
        finally:
            made.acceptor.close()
            for client in made.clients:
                client.close()


@pytest.mark.parametrize(
    ("flood", "one"), [(STRANGE, KNOWN), (KNOWN, OTHER)], ids=["of strangers", "with a valid token"]
)
async def test_connection_of_a_tenant_begins_before_a_flood_that_came_earlier(flood: bytes, one: bytes) -> None:
    async with flooded() as some:
        for _ in range(300):
            some.connect(flood)
        some.connect(one)
        await some.until(lambda: one in some.begun)
        assert some.begun.index(one) < 30
        await some.until(lambda: some.begun.count(flood) == 300)


async def test_oldest_of_a_flood_are_closed_and_no_more_wait_than_are_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(acceptor, "MAX_STRANGERS", 20)
    async with flooded() as some:
        made, most = [some.connect(STRANGE) for _ in range(400)], 0

        def is_over() -> bool:
            nonlocal most
            most = max(most, len(some.acceptor._of_addresses))
            return sum(map(is_closed, made)) + some.begun.count(STRANGE) == 400

        await some.until(is_over)
        assert most == 20
        assert sum(map(is_closed, made)) > 300
        assert not is_closed(made[-1])


async def test_flood_from_many_addresses_leaves_a_neighbours_first_call_in_the_queue(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Descriptors are everybody's: all addresses together have only so many that wait."""
    monkeypatch.setattr(acceptor, "MAX_STRANGERS", 50)
    first = STRANGE.replace(b"guess", b"first")
    async with flooded() as some:
        flood = [some.connect(STRANGE, f"127.0.2.{number % 20 + 1}") for number in range(300)]
        neighbour = some.connect(first, "127.0.0.2")
        flood += [some.connect(STRANGE, f"127.0.2.{number % 20 + 1}") for number in range(300)]
        await some.until(lambda: sum(map(is_closed, flood)) + len(some.begun) == 601)
        assert sum(map(is_closed, flood)) > 400
        assert not is_closed(neighbour)
        assert some.begun.index(first) < 100


async def test_tenant_with_most_waiting_connections_loses_its_oldest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(acceptor, "MAX_OF_TENANTS", 20)
    async with flooded() as some:
        flood = [some.connect(KNOWN) for _ in range(200)]
        others = [some.connect(OTHER) for _ in range(5)]
        await some.until(lambda: sum(map(is_closed, flood)) + len(some.begun) == 205)
        assert sum(map(is_closed, flood)) > 100
        assert not any(map(is_closed, others))


async def test_silent_connections_wait_without_a_protocol_and_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(acceptor, "MAX_SILENT", 50)
    async with flooded() as some:
        made = [some.connect() for _ in range(300)]
        await some.until(lambda: sum(map(is_closed, made)) == 250)
        assert not any(map(is_closed, made[-50:]))
        assert not some.begun
        made[-1].sendall(KNOWN)
        made[-2].sendall(STRANGE)
        await some.until(lambda: some.begun in ([KNOWN, STRANGE], [STRANGE, KNOWN]))


async def test_token_that_is_sent_late_is_served_amid_silent_connections_of_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(acceptor, "MAX_SILENT", 50)
    async with flooded() as some:
        flood = [some.connect() for _ in range(200)]
        late = some.connect(source="127.0.0.2")
        flood += [some.connect() for _ in range(400)]
        await some.until(lambda: sum(map(is_closed, flood)) >= 500)
        late.sendall(KNOWN)
        await some.until(lambda: KNOWN in some.begun or is_closed(late))
        assert KNOWN in some.begun


@pytest.mark.parametrize("content", [b"", STRANGE])
async def test_token_that_came_before_its_connection_is_closed_is_looked_at(
    content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The flood comes from its own address, and its token after the connection was accepted."""
    monkeypatch.setattr(acceptor, "MAX_SILENT", 50)
    monkeypatch.setattr(acceptor, "MAX_STRANGERS", 50)
    async with flooded() as some:
        some.connect(content)
        late = some.connect(content[:20])
        some.acceptor._accept()
        late.sendall(KNOWN[len(content[:20]) :])
        for _ in range(300):
            some.connect(content)
        for _ in range(5):
            some.acceptor._accept()
        await some.until(lambda: KNOWN in some.begun or is_closed(late))
        assert KNOWN in some.begun


async def test_connection_that_stays_silent_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener, "HEAD_SECONDS", 0.05)
    async with flooded() as some:
        silent = some.connect()
        await some.until(lambda: is_closed(silent))
        assert not some.acceptor._silent


async def test_client_that_has_gone_takes_no_turn() -> None:
    async with flooded() as some:
        for _ in range(100):
            some.connect().close()
        waiting = some.connect()
        some.acceptor._accept()
        some.acceptor._accept()
        waiting.close()
        some.connect(STRANGE)
        await some.until(lambda: STRANGE in some.begun and not some.acceptor._silent)
        assert some.begun == [STRANGE]


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
    other = build("192.0.2.2") + STRANGE
    async with flooded(listener, is_proxied=True) as some:
        for _ in range(300):
            some.connect(build("192.0.2.1") + STRANGE)
        some.connect(other)
        some.connect(b"\r\n\r\n\0\r\nQUIT\nno header at all")
        await some.until(lambda: other in some.begun)
        assert some.begun.index(other) < 30
        await some.until(lambda: len(some.begun) == 302)


async def test_header_of_a_proxy_is_believed_from_the_proxy_alone() -> None:
    """Otherwise one client has as many turns as it names addresses."""
    async with flooded() as some:
        for number in range(300):
            some.connect(build(f"192.0.2.{number % 250}", number) + STRANGE)
        some.connect(STRANGE, "127.0.0.2")
        await some.until(lambda: STRANGE in some.begun)
        assert some.begun.index(STRANGE) < 30


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
