"""The previews of a service that works close a route only once no standby leads visits by it any more."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
from tests.previews.proxy import App, Proxy, new_host, route_to

from builderd.adapters.previews.haproxy import standbys
from builderd.domain.previews import PreviewActivity, Route, RouteState
from builderd.domain.standby_reports import StandbyReport

pytestmark = pytest.mark.haproxy


@pytest.fixture
def service(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """A service with a standby that leads visits by its list, until it is silent for 0.6 s."""
    monkeypatch.setattr(standbys, "CLOSED_AFTER", 0.6)
    proxy.previews.standbys = standbys.Standbys()
    yield proxy
    proxy.previews.standbys = standbys.Standbys()


def report(service: Proxy, mark: int = 0, **fields: object) -> None:
    """Let the standby ask, and answer it."""
    previews, now = service.previews, time.monotonic()
    made = replace(StandbyReport("a", whole=True, mark=mark), **fields)  # type: ignore[arg-type]
    previews.standbys.take(made, now, knows_run=True, hosts=previews.hosts)
    previews.standbys.answer("a", now)


def changes(app: App) -> list[tuple[str, Route | None, bool]]:
    """Changes of a public route to the app, and whether standbys must not lead by it any more."""
    host = "x.localhost"
    opened = route_to(app, host=host)
    return [
        ("removed", None, True),
        ("paused", Route(host, RouteState.PAUSED), True),
        ("asleep", Route(host, RouteState.ASLEEP), True),
        ("stopped", Route(host, RouteState.STOPPED), True),
        ("private", route_to(app, host=host, private=True), True),
        ("other protocol", replace(opened, h2c=True), True),
        ("moved", replace(opened, destination=replace(app.address, port=1)), True),
        ("unchanged", opened, False),
        ("other token", replace(opened, owner_hash="b" * 64), False),
    ]


async def change(service: Proxy, host: str, route: Route | None) -> None:
    await (service.previews.remove(host) if route is None else service.previews.put(replace(route, host=host)))


@pytest.mark.parametrize("number", range(9))
def test_change_that_closes_a_route_waits_for_the_standby(service: Proxy, app: App, number: int) -> None:
    host, (name, route, closes) = service.open(app), changes(app)[number]
    report(service)

    async def run() -> None:
        changing = asyncio.create_task(change(service, host, route))
        await asyncio.sleep(0.1)
        assert changing.done() is not closes, name
        report(service, mark=1)
        await asyncio.wait_for(changing, 0.3)

    service.run(run())


def test_route_that_is_opened_or_private_waits_for_nobody(service: Proxy, app: App) -> None:
    report(service)
    began = time.monotonic()
    private = service.open(app, private=True)
    service.put(Route(private, RouteState.PAUSED))
    service.put(Route(new_host(), RouteState.STOPPED))
    assert time.monotonic() - began < 0.5


def test_silent_standby_is_waited_for_once(service: Proxy, app: App) -> None:
    hosts = [service.open(app) for _ in range(5)]
    report(service)
    began = time.monotonic()
    for host in hosts:
        service.put(Route(host, RouteState.PAUSED))
    assert 0.5 < time.monotonic() - began < 1.1


def test_wait_that_was_cut_off_is_gone_on_with_by_the_next_look(service: Proxy, app: App) -> None:
    """Else the app were stopped while the standby still leads its visits there."""
    host = service.open(app)
    report(service)

    async def run() -> None:
        closing = asyncio.create_task(service.previews.put(Route(host, RouteState.PAUSED)))
        await asyncio.sleep(0.1)
        closing.cancel()
        await asyncio.wait({closing})
        looking = asyncio.create_task(service.previews.get(host))
        await asyncio.sleep(0.1)
        assert not looking.done()
        report(service, mark=1)
        found = await asyncio.wait_for(looking, 0.3)
        assert found is not None
        assert found.state is RouteState.PAUSED

    service.run(run())


def test_closed_route_of_a_killed_service_is_none_to_the_next_one_too_soon(service: Proxy, app: App) -> None:
    """The route was written, and its standbys were not heard any more."""
    host = service.open(app)
    service.put(Route(host, RouteState.PAUSED))
    other = service.open(app)
    lost = new_host()
    began = time.monotonic()
    service.previews.standbys.begin(began + 0.5, (host, other, lost))
    assert service.run(service.previews.get(other)) is not None
    assert time.monotonic() - began < 0.4, "one that is open waits for nothing"
    for closed in (host, lost):
        service.run(service.previews.get(closed))
        assert time.monotonic() - began >= 0.5


def test_host_that_no_earlier_service_had_waits_for_no_standby(service: Proxy, app: App) -> None:
    """Builders that are created right after the start of the service have such hosts."""
    old, new = service.open(app), new_host()
    began = time.monotonic()
    service.previews.standbys.begin(began + 60, (old,))
    assert service.run(service.previews.get(new)) is None
    service.put(Route(new, RouteState.STARTING))
    assert service.run(service.previews.get(new)) is not None
    service.open(app, host=new)
    service.put(Route(new, RouteState.PAUSED))
    service.run(service.previews.remove(new))
    assert time.monotonic() - began < 30


def test_open_requests_and_visits_of_standbys_are_added(service: Proxy, app: App) -> None:
    host = service.open(app)
    assert service.visitor.get(host).status == 200
    report(service)
    counted = PreviewActivity(3, 30, 300, 1, 0, 3, 0.0, answers_2xx=3)
    foreign = PreviewActivity(9, 9, 9, 9, 9, 9, 0.0)
    report(service, counts={host: counted, "foreign.example": foreign})
    shown = service.activity()
    assert (shown[host].requests, shown[host].open_connections, shown[host].answers_2xx) == (4, 1, 4)
    assert "foreign.example" not in shown

    async def count() -> int:
        counting = asyncio.create_task(service.previews.open_requests(host))
        await asyncio.sleep(0.1)
        report(service, mark=1, open={host: 2, "foreign.example": 5})
        return await counting

    assert service.run(count()) == 2


def test_app_that_is_frozen_for_a_copy_is_led_to_by_no_standby(service: Proxy, make_app: Callable[[str], App]) -> None:
    """Visits are paused at the service meanwhile: more of them than the backlog of the app holds would fail."""
    for other in service.run(service.previews.routes()):
        service.run(service.previews.remove(other))
    app = make_app("frozen")
    host = service.open(app)
    report(service)
    version = service.previews.routes_since(None)[0]

    async def run() -> None:
        pause = service.previews.paused_at(app.address.ip)
        pausing = asyncio.create_task(pause.__aenter__())
        await asyncio.sleep(0.1)
        assert not pausing.done()
        route = service.previews.routes_since(version)[2][host]
        assert route is not None
        assert route.destination is None
        for mark in range(1, 100):
            report(service, mark=mark)
            await asyncio.sleep(0)
        await asyncio.wait_for(pausing, 5)
        paused = service.previews.routes_since(None)[0]
        await pause.__aexit__(None, None, None)
        assert service.previews.routes_since(paused)[2][host] == await service.previews.get(host)

    service.run(run())
