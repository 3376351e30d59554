"""A tenant's paused requests leave connections of the proxy to the visitors of its neighbours."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
from tests.integration.previews.waking_service import PATIENCE, Service, fetch
from tests.previews.proxy import TOKEN, App, new_host, route_to

from builderd.domain.ids import TenantId, new_id, secret_hash
from builderd.domain.previews import Route, RouteState

pytestmark = pytest.mark.haproxy

#: Connections of the proxy; half of them may be held by paused requests, and half of these by one tenant's.
CONNECTIONS, MOST, SHARE = 80, 40, 20
APPS, VISITS = 40, 3


@pytest.fixture
async def small() -> AsyncIterator[Service]:
    made = Service()
    made.options = replace(made.options, max_connections=CONNECTIONS, address_connections=0)
    made.previews = made.another()
    try:
        await made.start()
        yield made
    finally:
        await made.close()


async def asleep(service: Service, tenant: TenantId) -> str:
    route = Route(new_host(), RouteState.ASLEEP, owner_hash=secret_hash(TOKEN), tenant_id=tenant)
    await service.previews.put(route)
    return route.host


async def flood(service: Service, tenant: TenantId) -> list[asyncio.Task[int]]:
    """Visit many sleeping apps of a tenant; return once all of these visits are held or answered."""
    hosts = [await asleep(service, tenant) for _ in range(APPS)]
    visits = [asyncio.create_task(fetch(service.options.port, host)) for host in hosts * VISITS]
    async with asyncio.timeout(PATIENCE):
        while sum(not visit.done() for visit in visits) > SHARE:
            await asyncio.sleep(0.01)
    return visits


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
        held = {host for host in small.knocks if small.previews._paused._connections.get(host)}
        assert held
        for host in held:
            await small.wake(host, app)
        async with asyncio.timeout(PATIENCE):
            statuses = Counter(await asyncio.gather(*visits))
        assert statuses == {503: APPS * VISITS - SHARE, 200: SHARE}
        small.knocks.clear()


async def test_each_of_several_tenants_finds_room(small: Service) -> None:
    """A tenant may hold as many as are free for all: 20 of 40, then 10, then 5."""
    floods = [await flood(small, TenantId(new_id())) for _ in range(3)]
    held = [sum(not visit.done() for visit in visits) for visits in floods]
    assert held == [20, 10, 5]
    for visits in floods:
        await cancel(visits)


async def put_open(service: Service, app: App) -> Route:
    route = route_to(app)
    await service.previews.put(route)
    return route
