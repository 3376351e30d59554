"""Floods by one client, seen by another: large answers, and connections that are kept open."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import time
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

import httpx
import pytest
from tests.service import MINIMAL, Service, listening, running_service

from builderd.adapters.fakes.processes import Answer
from builderd.api.sandbox_api import create_sandbox_app
from builderd.api.server import connections
from builderd.api.server.connections import ConnectionLimits
from builderd.services.held_bytes import LIMIT

BUILDERS = "/api/v1/builders"
#: Against hanging.
DEADLINE = 60
FEW = ConnectionLimits(total=60, strangers=40, address=20, tenant=30)
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
async def service() -> AsyncIterator[Service]:
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
    assert longest < 0.15
    assert not service.app.state.operations.held_bytes._accounts


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
            await asyncio.sleep(0.01)
            most = max(most, *(one.held for one in service.app.state.operations.held_bytes._accounts.values()), 0)
        assert sending.result() > 0
        # Parsed in this process it is 1.2 s.
        assert time.process_time() - before < 0.9
    assert length <= most <= LIMIT + length
    assert not service.app.state.operations.held_bytes._accounts


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


async def test_connections_without_a_token_lock_nobody_out(service: Service) -> None:
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
    limits = ConnectionLimits(total=60, strangers=60, address=connections.SANDBOX_API.address // 4)
    async with listening(inside, limits) as url, clients(url, "127.0.0.3", "127.0.0.4") as (attacker, neighbour):
        kept = await neighbour.connect()
        assert await neighbour.ask(kept, path, own["service_token"]) == 200
        await attacker.flood(100)
        await attacker.flood(50, path, own["service_token"])
        assert await neighbour.ask(kept, path, own["service_token"]) == 200
        assert await neighbour.ask(await neighbour.connect(), path, own["service_token"]) == 200
