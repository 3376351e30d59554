"""Floods by one client, seen by another: large answers, and connections that are kept open."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from tests.fakes.processes import Answer
from tests.patience import patience
from tests.proxied import build
from tests.send_queues import unacknowledged
from tests.service import MINIMAL, Service, listening, running_service

from builderd.core.ids import BuilderId
from builderd.executions.service import LIMIT
from builderd.files.model import FileEntry, FileKind
from builderd.server import limits, listener, streams
from builderd.server.limits import ConnectionLimits
from builderd.server.sandbox_api import create_sandbox_app
from builderd.tokens.limits import MAX_WAITING

BUILDERS = "/api/v1/builders"
#: Against hanging.
DEADLINE = patience(60)
FEW = ConnectionLimits(total=60, strangers=40, address=16, tenant=30)
#: A client without a library, and in a process of its own: what it reads costs the service nothing but the sending.
READER = """
import json, socket, sys
host, port, head, body = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3]).encode(), sys.argv[4].encode()
count, times = int(sys.argv[5]), int(sys.argv[6])
open_ = [socket.create_connection((host, port)) for _ in range(count)]
for one in open_:
    one.sendall(head)
    for _ in range(times):
        one.sendall(body)
    one.sendall(sys.argv[7].encode())
seen = 0
for one in open_:
    while piece := one.recv(1 << 20):
        seen += len(piece)
print(seen)
"""


@pytest.fixture
async def service(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Service]:
    """Return a service that waits longer on a slow machine before it closes an answer as unread."""
    monkeypatch.setattr(streams, "STALL_SECONDS", patience(streams.STALL_SECONDS))
    monkeypatch.setattr(listener, "UNREAD_SECONDS", round(patience(listener.UNREAD_SECONDS)))
    async with running_service() as running:
        yield running


# Large answers


@pytest.mark.parametrize("stream", [False, True])
async def test_large_outputs_leave_the_event_loop_to_others(service: Service, stream: bool) -> None:
    """NULs are six times as long in JSON. CPU time of the loop's thread is measured, whatever else the machine does."""
    service.engine.answer("flood", Answer(0, "\0" * 9_000_000))
    own = (await service.client(service.write).post(BUILDERS, json=MINIMAL)).json()["data"]
    body = json.dumps({"command": "flood", "stream": stream})
    head = (
        f"POST {BUILDERS}/{own['uuid']}/exec HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {service.write}\r\n"
        f"Content-Type: application/json\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n{body}"
    )
    async with listening(service.app) as url, asyncio.timeout(DEADLINE):
        flood = asyncio.create_task(_read_all(url, head, 3))
        async with service.client(service.other, url) as neighbour:
            longest, answers = await _busiest_turn(flood, neighbour)
    assert await flood > 3 * 6 * 9_000_000
    assert answers
    assert longest < patience(0.15)
    assert not service.app.state.operations.memory._accounts


async def _read_all(url: str, head: str, count: int, body: str = "", times: int = 0, end: str = "") -> int:
    """Send this request, with ``body`` so many times and ``end``, over ``count`` connections; return the bytes read."""
    place = urlsplit(url)
    words = ["-I", "-S", "-c", READER, str(place.hostname), str(place.port), json.dumps(head), body]
    words += [str(count), str(times), end]
    reader = await asyncio.create_subprocess_exec(sys.executable, *words, stdout=asyncio.subprocess.PIPE)
    out, _ = await reader.communicate()
    return int(out)


async def test_large_bodies_are_parsed_apart_and_within_a_budget(service: Service) -> None:
    """The CPU time of the service's own process: what parses in it keeps everybody from the interpreter."""
    piece, times = "\\u0041" * 20_000, 240
    start, end = '{"name": "a", "entrypoint": "x", "port": "none", "files": {"a": "', '"}}'
    length = len(start) + len(piece) * times + len(end)
    head = (
        f"POST {BUILDERS} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {service.write}\r\n"
        f"Content-Type: application/json\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{start}"
    )
    async with listening(service.app) as url, asyncio.timeout(DEADLINE):
        before, most = time.process_time(), 0
        sending = asyncio.create_task(_read_all(url, head, 3, piece, times, end))
        while not sending.done():
            await asyncio.sleep(0.05)  # looking counts as the service's CPU time too
            most = max(most, *(one.reserved for one in service.app.state.operations.memory._accounts.values()), 0)
        assert sending.result() > 0
        # Parsed in this process it is 1.2 s.
        assert time.process_time() - before < patience(0.9)
    assert length <= most <= LIMIT + length
    assert not service.app.state.operations.memory._accounts


async def _busiest_turn(flood: asyncio.Task[int], neighbour: httpx.AsyncClient) -> tuple[float, int]:
    """The most CPU time that the loop took between two turns of this task, and how often the neighbour was answered."""
    asking, longest, answers = asyncio.create_task(neighbour.get(BUILDERS)), 0.0, 0
    while not flood.done():
        before = time.thread_time()
        await asyncio.sleep(0)
        longest = max(longest, time.thread_time() - before)
        if asking.done():
            assert asking.result().status_code == 200
            answers, asking = answers + 1, asyncio.create_task(neighbour.get(BUILDERS))
    await asking
    return longest, answers


# Reads and writes that are many


class Gate:
    """Replaces an engine's method: counts the calls in it, and blocks those that are ``blocked`` until it is opened."""

    def __init__(self, real: Callable[..., Awaitable[Any]], blocked: Callable[[str], bool]) -> None:
        self._real, self._blocked = real, blocked
        self.inside = self.most = 0
        self.opened = asyncio.Event()

    async def __call__(self, subject: str, *words: Any, **options: Any) -> Any:
        if not self._blocked(subject):
            return await self._real(subject, *words, **options)
        self.inside += 1
        self.most = max(self.most, self.inside)
        try:
            await self.opened.wait()
            return await self._real(subject, *words, **options)
        finally:
            self.inside -= 1


async def _two_builders(service: Service) -> tuple[dict[str, Any], dict[str, Any]]:
    """A builder of the attacker and one of its neighbour."""
    made = [await service.client(one).post(BUILDERS, json=MINIMAL) for one in (service.write, service.other)]
    attacker, neighbour = (one.json()["data"] for one in made)
    return attacker, neighbour


async def test_one_list_of_a_tenant_is_made_at_a_time(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """24 lists of a large folder kept a neighbour waiting for seconds: each costs the interpreter for a while."""
    attacker, neighbour = await _two_builders(service)
    own = await _disk_of(service, attacker["uuid"])
    gate = Gate(service.engine.list_files, lambda disk: disk == own)
    monkeypatch.setattr(service.engine, "list_files", gate)
    client, other = service.client(service.write), service.client(service.other)
    paths = [f"{BUILDERS}/{attacker['uuid']}/files"] * 24 + [BUILDERS, "/api/v1/events", f"{BUILDERS}/spending"]
    flood = [asyncio.create_task(client.get(path)) for path in paths]
    async with asyncio.timeout(DEADLINE):
        while not gate.inside:
            await asyncio.sleep(0.005)
        for path in (f"{BUILDERS}/{neighbour['uuid']}/files", BUILDERS, "/api/v1/events", f"{BUILDERS}/spending"):
            assert (await other.get(path)).status_code == 200
        assert not any(one.done() for one in flood)
        gate.opened.set()
        assert {one.status_code for one in await asyncio.gather(*flood)} == {200}
    assert gate.most == 1
    assert not service.app.state.operations.memory._accounts


async def test_lists_beyond_those_that_may_wait_are_refused(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    attacker, _ = await _two_builders(service)
    gate = Gate(service.engine.list_files, lambda disk: True)
    monkeypatch.setattr(service.engine, "list_files", gate)
    client = service.client(service.write)
    path = f"{BUILDERS}/{attacker['uuid']}/files"
    flood = [asyncio.create_task(client.get(path)) for _ in range(MAX_WAITING + 5)]
    async with asyncio.timeout(DEADLINE):
        while sum(one.done() for one in flood) < 4:
            await asyncio.sleep(0.005)
        gate.opened.set()
        answers = await asyncio.gather(*flood)
    refused = [one for one in answers if one.status_code != 200]
    assert [(one.status_code, one.json()["code"]) for one in refused] == [(429, "rate_limited")] * 4
    assert all("retry-after" in one.headers for one in refused)


async def test_one_page_of_the_logs_of_a_tenant_is_read_at_a_time(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    attacker, neighbour = await _two_builders(service)
    sandbox = next(iter(service.engine.known))
    gate = Gate(service.engine.search_log, lambda name: name == sandbox)
    monkeypatch.setattr(service.engine, "search_log", gate)
    client, other = service.client(service.write), service.client(service.other)
    path = f"{BUILDERS}/{attacker['uuid']}/logs?tail=100000"
    flood = [asyncio.create_task(client.get(path)) for _ in range(24)]
    async with asyncio.timeout(DEADLINE):
        while not gate.inside:
            await asyncio.sleep(0.005)
        assert (await other.get(f"{BUILDERS}/{neighbour['uuid']}/logs")).status_code == 200
        gate.opened.set()
        assert {one.status_code for one in await asyncio.gather(*flood)} == {200}
    assert gate.most == 1


async def test_unread_lists_count_in_the_memory_budget_of_their_tenant(service: Service) -> None:
    """24 lists of thirty builders with 500 kB of environment each took 500 MB."""
    environment = {f"A{number}": "x" * 99_000 for number in range(10)}
    client = service.client(service.write)
    for number in range(8):
        new = {**MINIMAL, "name": f"b{number}", "env": environment}
        assert (await client.post(BUILDERS, json=new)).status_code == 201
    head = f"GET {BUILDERS} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {service.write}\r\n\r\n"
    async with listening(service.app) as url, asyncio.timeout(DEADLINE):
        place = urlsplit(url)
        unread = [await _open_small(str(place.hostname), place.port or 0) for _ in range(20)]
        for _, writer in unread:
            writer.write(head.encode())
        most, queue = 0, service.app.state.operations.lists
        while most < LIMIT - 8_000_000:
            await asyncio.sleep(0.02)
            most = max(most, *(one.reserved for one in service.app.state.operations.memory._accounts.values()), 0)
        async with service.client(service.other, url) as neighbour:
            assert (await neighbour.get(BUILDERS)).status_code == 200
        assert most <= LIMIT + 8_000_000
        for _, writer in unread:
            writer.close()
        while service.app.state.operations.memory._accounts or queue._calls:
            await asyncio.sleep(0.02)


async def _open_small(host: str, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect with a small receive buffer: the kernel may take a whole list, and the service keeps nothing of it."""
    return await asyncio.open_connection(sock=await _connect(host, port, 64 << 10))


async def _connect(host: str, port: int, receive_buffer: int) -> socket.socket:
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    connection.setblocking(False)
    await asyncio.get_running_loop().sock_connect(connection, (host, port))
    return connection


async def test_unread_answers_take_a_bounded_part_of_the_kernels_memory(service: Service) -> None:
    """No budget of a tenant counts what the kernel has taken: it was 4 MB for each connection."""
    service.engine.answer("flood", Answer(0, "\0" * 2_000_000))
    own = (await service.client(service.write).post(BUILDERS, json=MINIMAL)).json()["data"]
    body = json.dumps({"command": "flood"})
    head = (
        f"POST {BUILDERS}/{own['uuid']}/exec HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {service.write}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n{body}"
    )
    async with listening(service.app) as url, asyncio.timeout(DEADLINE):
        place = urlsplit(url)
        port = place.port or 0
        with contextlib.ExitStack() as stack:
            for _ in range(4):
                # A large window: what the client's kernel takes lets the sender's grow.
                attacker = stack.enter_context(await _connect(str(place.hostname), port, 4 << 20))
                await asyncio.get_running_loop().sock_sendall(attacker, head.encode())
            looks: list[list[int]] = []
            # Until the kernel has taken what it takes of each answer.
            while len(looks) < 5 or any(look != looks[-1] for look in looks[-5:]) or len(looks[-1]) < 4:
                await asyncio.sleep(0.1)
                looks.append(unacknowledged(port))
            async with service.client(service.other, url) as neighbour:
                assert (await neighbour.get(BUILDERS)).status_code == 200
    # One piece more may be taken while there is room.
    assert 0 < max(looks[-1]) <= 2 * listener.SEND_BUFFER + (64 << 10)


async def test_few_files_of_a_tenant_are_written_at_a_time(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files that are still arriving keep no place: a slow client does not delay the tenant's others."""
    attacker, neighbour = await _two_builders(service)
    disk = await _disk_of(service, attacker["uuid"])
    written: list[str] = []
    at_once = most = 0

    async def write_file(disk_: str, path: str, content: AsyncIterator[bytes], **_: Any) -> Any:
        nonlocal at_once, most
        async for _piece in content:
            if disk_ == disk:
                at_once += 1
                most = max(most, at_once)
                await asyncio.sleep(0.01)
                at_once -= 1
        written.append(path)
        return FileEntry(path, FileKind.FILE, 1, 0o644, datetime.now(UTC), "tag"), True

    monkeypatch.setattr(service.engine, "write_file", write_file)
    never = asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        yield b"a"
        await never.wait()

    client, other = service.client(service.write), service.client(service.other)
    base = f"{BUILDERS}/{attacker['uuid']}/files"
    stuck = [asyncio.create_task(client.put(f"{base}/slow{number}", content=slow())) for number in range(6)]
    async with asyncio.timeout(DEADLINE):
        flood = [client.put(f"{base}/{number}", content=b"x") for number in range(24)]
        assert {one.status_code for one in await asyncio.gather(*flood)} == {201}
        assert (await other.put(f"{BUILDERS}/{neighbour['uuid']}/files/a", content=b"x")).status_code == 201
    assert len(written) == 25
    assert most <= 4
    for one in stuck:
        one.cancel()
    await asyncio.gather(*stuck, return_exceptions=True)


async def _disk_of(service: Service, uuid: str) -> str:
    builder = await service.store.read(lambda uow: uow.builders.get(BuilderId(uuid)))
    assert builder
    return builder.disk


# Connections


class Client:
    """A client with connections that it keeps, from an address of its own on the loopback network."""

    def __init__(self, url: str, address: str) -> None:
        self._place, self._address = urlsplit(url), address
        self._kept: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def connect(self) -> int:
        source = (self._address, 0)
        made = await asyncio.open_connection(self._place.hostname, self._place.port, local_addr=source)
        self._kept.append(made)
        return len(self._kept) - 1

    async def ask(self, number: int, path: str = "/healthz", secret: str | None = None) -> int:
        """The status of the answer on this connection; 0 when it was closed."""
        reader, writer = self._kept[number]
        token = f"Authorization: Bearer {secret}\r\n" if secret else ""
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            writer.write(f"GET {path} HTTP/1.1\r\nHost: a\r\n{token}\r\n".encode())
            head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            length = next(line for line in head.split("\r\n") if line.startswith("content-length"))
            await reader.readexactly(int(length.partition(":")[2]))
            return int(head.split()[1])
        return 0

    async def flood(self, count: int, path: str = "/healthz", secret: str | None = None) -> None:
        """Open so many connections, and keep each after an answer as far as the service lets it."""
        for _ in range(count):
            await self.ask(await self.connect(), path, secret)

    async def close(self) -> None:
        for _, writer in self._kept:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()


@contextlib.asynccontextmanager
async def clients(url: str, *addresses: str) -> AsyncIterator[list[Client]]:
    made = [Client(url, address) for address in addresses]
    try:
        async with asyncio.timeout(DEADLINE):
            yield made
    finally:
        for one in made:
            await one.close()


async def test_connections_without_a_token_do_not_lock_others_out(service: Service) -> None:
    """Neither a valid token from the same address, as behind a forwarder, nor a newcomer from another one."""
    async with listening(service.app, FEW) as url, clients(url, "127.0.0.1", "127.0.0.1", "127.0.0.2") as made:
        attacker, tenant, newcomer = made
        kept = await tenant.connect()
        assert await tenant.ask(kept, BUILDERS, service.write) == 200
        await attacker.flood(100)
        assert await tenant.ask(kept, BUILDERS, service.write) == 200
        assert await tenant.ask(await tenant.connect(), BUILDERS, service.other) == 200
        assert await newcomer.ask(await newcomer.connect()) == 200


async def test_connections_from_many_addresses_without_a_token_lock_no_token_out(service: Service) -> None:
    addresses = [f"127.0.1.{number}" for number in range(1, 11)]
    async with listening(service.app, FEW) as url, clients(url, "127.0.0.1", *addresses) as (tenant, *attackers):
        kept = await tenant.connect()
        assert await tenant.ask(kept, BUILDERS, service.write) == 200
        for attacker in attackers:
            # These say nothing at all, so each is kept for as long as a head may take.
            for _ in range(15):
                await attacker.connect()
        assert await tenant.ask(kept, BUILDERS, service.write) == 200
        assert await tenant.ask(await tenant.connect(), BUILDERS, service.other) == 200


async def test_burst_from_the_address_of_a_valid_token_neither_refuses_nor_resets_it(service: Service) -> None:
    """The kernel completes connections while the loop works: those that come next to be accepted are a burst."""
    few = ConnectionLimits(total=600, strangers=500, address=150)
    known = f"GET {BUILDERS} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {service.write}\r\nConnection: close\r\n\r\n"
    guess = known.replace(service.write, "bd_" + "x" * 43)
    async with listening(service.app, few) as url, clients(url, "127.0.0.1") as (tenant,):
        assert await tenant.ask(await tenant.connect(), BUILDERS, service.write) == 200
        place, flood = urlsplit(url), [guess, "GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n", ""]
        made = []
        for number in range(700):
            made.append(socket.create_connection((place.hostname or "", place.port or 0)))
            made[-1].sendall((known if number % 100 == 50 else flood[number % 3]).encode())
        async with asyncio.timeout(DEADLINE):
            answers = [await _first_bytes(made[number]) for number in range(50, 700, 100)]
        for one in made:
            one.close()
        assert answers == [b"HTTP/1.1 200"] * 7


@pytest.mark.parametrize("flood", ["silent", "invented addresses", "many addresses", "valid token"])
async def test_valid_token_is_served_beside_a_flood_of_new_connections(service: Service, flood: str) -> None:
    known = f"GET {BUILDERS} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {service.write}\r\nConnection: close\r\n\r\n"
    guess = known.replace(service.write, "bd_" + "x" * 43).encode()
    made = []
    few = ConnectionLimits(total=60, strangers=60, address=60, tenant=60)
    async with listening(service.app, few) as url, clients(url, "127.0.0.1") as (tenant,):
        for secret in (service.write, service.other):
            assert await tenant.ask(await tenant.connect(), BUILDERS, secret) == 200
        place = urlsplit(url)
        for number in range(400):
            content, source = {
                "silent": (b"", "127.0.0.1"),
                "invented addresses": (build(f"192.0.2.{number % 250}") + guess, "127.0.0.1"),
                "many addresses": (guess, f"127.0.2.{number % 250 + 1}"),
                "valid token": (known.replace(service.write, service.other).encode(), "127.0.0.1"),
            }[flood]
            if number % 80 == 40:
                content, source = known.encode(), "127.0.0.1"
            address = place.hostname or "", place.port or 0
            made.append(socket.create_connection(address, source_address=(source, 0)))
            made[-1].sendall(content)
        async with asyncio.timeout(DEADLINE):
            answers = [await _first_bytes(made[number]) for number in range(40, 400, 80)]
        for one in made:
            one.close()
    assert answers == [b"HTTP/1.1 200"] * 5


async def _first_bytes(connection: socket.socket) -> bytes:
    """The beginning of the answer; what was raised, if the connection was reset."""
    connection.setblocking(False)
    try:
        return await asyncio.get_running_loop().sock_recv(connection, 12)
    except ConnectionError as error:
        return type(error).__name__.encode()


async def test_connections_of_one_tenant_leave_room_for_the_next(service: Service) -> None:
    async with listening(service.app, FEW) as url, clients(url, "127.0.0.1", "127.0.0.1") as (attacker, tenant):
        kept = await tenant.connect()
        assert await tenant.ask(kept, BUILDERS, service.other) == 200
        await attacker.flood(100, BUILDERS, service.write)
        assert await tenant.ask(kept, BUILDERS, service.other) == 200
        assert await tenant.ask(await tenant.connect(), BUILDERS, service.other) == 200


async def test_one_app_cannot_take_the_connections_of_its_neighbours_inside(service: Service) -> None:
    own = (await service.client(service.write).post(BUILDERS, json=MINIMAL)).json()["data"]
    path, inside = f"{BUILDERS}/{own['uuid']}", create_sandbox_app(service.application)
    few = ConnectionLimits(total=60, strangers=60, address=limits.SANDBOX_API.address // 4)
    async with listening(inside, few) as url, clients(url, "127.0.0.3", "127.0.0.4") as (attacker, neighbour):
        kept = await neighbour.connect()
        assert await neighbour.ask(kept, path, own["service_token"]) == 200
        await attacker.flood(100)
        await attacker.flood(50, path, own["service_token"])
        assert await neighbour.ask(kept, path, own["service_token"]) == 200
        assert await neighbour.ask(await neighbour.connect(), path, own["service_token"]) == 200
