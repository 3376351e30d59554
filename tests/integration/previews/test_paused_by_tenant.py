"""A tenant's paused requests leave connections of the proxy to the visitors of its neighbours."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
from tests.integration.previews.waking_service import PATIENCE, Service, change, fetch
from tests.previews.proxy import TOKEN, App, new_host, route_to

from builderd.core.ids import TenantId, new_id, secret_hash
from builderd.previews.model import Route, RouteState

pytestmark = pytest.mark.haproxy

#: Connections of the proxy; half of them may be taken by paused requests, and half of these by one tenant's.
CONNECTIONS, SHARE = 80, 20
APPS, VISITS = 40, 3
#: Requests of a crowd, and how often two crowds are released at once.
CROWD, ROUNDS = 150, 3


@contextlib.asynccontextmanager
async def limited(connections: int = CONNECTIONS, *, threads: int = 2) -> AsyncIterator[Service]:
    made = Service(threads=threads)
    made.options = replace(made.options, max_connections=connections, address_connections=0)
    made.previews = made.another()
    try:
        await made.start()
        yield made
    finally:
        await made.close()


@pytest.fixture
async def small() -> AsyncIterator[Service]:
    async with limited() as made:
        yield made


async def asleep(service: Service, tenant: TenantId) -> str:
    route = Route(new_host(), RouteState.ASLEEP, owner_hash=secret_hash(TOKEN), tenant_id=tenant)
    await service.previews.put(route)
    return route.host


def visit(service: Service, hosts: list[str], accept: str = "*/*") -> list[asyncio.Task[int]]:
    return [asyncio.create_task(fetch(service.options.port, host, accept)) for host in hosts]


async def flood(service: Service, tenant: TenantId, room: int = SHARE) -> list[asyncio.Task[int]]:
    """Visit many sleeping apps of a tenant; return once all that find no room are answered."""
    hosts = [await asleep(service, tenant) for _ in range(APPS)]
    visits = visit(service, hosts * VISITS)
    await answered(visits, len(visits) - room)
    return visits


async def answered(visits: list[asyncio.Task[int]], number: int) -> None:
    async with asyncio.timeout(PATIENCE):
        while sum(visit.done() for visit in visits) < number:
            await asyncio.sleep(0.01)


def rejected(visits: list[asyncio.Task[int]]) -> int:
    statuses = Counter(visit.result() for visit in visits if visit.done())
    assert set(statuses) <= {503}
    return statuses[503]


async def cancel(visits: list[asyncio.Task[int]]) -> None:
    for visit in visits:
        visit.cancel()
    await asyncio.gather(*visits, return_exceptions=True)


async def test_neighbour_is_served_beside_visits_to_many_sleeping_apps_of_a_tenant(small: Service, app: App) -> None:
    open_host = (await put_open(small, app)).host
    visits = await flood(small, TenantId(new_id()))
    statuses = Counter(visit.result() for visit in visits if visit.done())
    assert statuses == {503: APPS * VISITS - SHARE}, "the rest is told to come again"
    async with asyncio.timeout(PATIENCE):
        assert await fetch(small.options.port, open_host) == 200
        sleeping = await asleep(small, TenantId(new_id()))
        waking = asyncio.create_task(fetch(small.options.port, sleeping))
        await small.knocked(sleeping)
        await small.wake(sleeping, app)
        assert await waking == 200
    await cancel(visits)


async def test_room_of_answered_visits_is_free_again(small: Service, app: App) -> None:
    tenant = TenantId(new_id())
    for _ in range(3):
        visits = await flood(small, tenant)
        async with asyncio.timeout(PATIENCE):
            while not all(visit.done() for visit in visits):
                for host in [host for host in small.knocks if small.previews._paused._connections.get(host)]:
                    await small.wake(host, app)
                await asyncio.sleep(0.01)
        statuses = Counter(await asyncio.gather(*visits))
        assert statuses == {503: APPS * VISITS - SHARE, 200: SHARE}
        small.knocks.clear()


async def test_each_of_several_tenants_finds_room(small: Service) -> None:
    """A tenant may have as many as are free for all: 20 of 40, then 10, then 5."""
    rooms = [20, 10, 5]
    floods = [await flood(small, TenantId(new_id()), room) for room in rooms]
    assert [sum(not visit.done() for visit in visits) for visits in floods] == rooms
    for visits in floods:
        await cancel(visits)


async def test_counts_are_right_after_crowds_are_released_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use 20 threads: HAProxy then interrupts a script after 500 instructions, if it is not told otherwise."""
    # Most interruptions come between the read of the count and its write then, and few without this.
    line = "paused_of_all = paused_of_all + number"
    change(monkeypatch, line, "local all = paused_of_all for _ = 1, 1000 do end paused_of_all = all + number")
    async with limited(CROWD * 8, threads=20) as service:
        for _ in range(ROUNDS):
            hosts = [await asleep(service, TenantId(new_id())) for _ in range(2)]
            crowds = visit(service, hosts * CROWD)
            await service.paused(len(crowds))
            await asyncio.gather(*(service.previews.reject_visitors(host) for host in hosts))
            assert Counter(await asyncio.gather(*crowds)) == {503: len(crowds)}
        visits = visit(service, [await asleep(service, TenantId(new_id()))] * (CROWD * 3))
        await answered(visits, CROWD)
        assert rejected(visits) == CROWD, "alone, a tenant finds half of the places"
        await cancel(visits)


async def put_open(service: Service, app: App) -> Route:
    route = route_to(app)
    await service.previews.put(route)
    return route
