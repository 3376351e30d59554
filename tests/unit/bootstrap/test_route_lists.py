"""The list of routes that a standby keeps: what it takes, and for how long it may be used."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import httpx
import pytest

from builderd.adapters.previews.haproxy import route_map
from builderd.adapters.previews.haproxy.previews import HaproxyPreviews
from builderd.adapters.previews.haproxy.route_map import RouteMap
from builderd.adapters.previews.haproxy.standbys import Standbys
from builderd.bootstrap import route_lists
from builderd.bootstrap.route_lists import Moment, RouteList, RouteSource, SeenLease
from builderd.domain.errors import EngineUnavailable
from builderd.domain.previews import Address, Route, RouteState
from builderd.domain.route_list import LEASE_SECONDS, LIST_SECONDS, PROXY_SECONDS, ListedRoute

HERE, THERE = "10.98.0.11", "10.98.0.12"
HASH = "a" * 64


def route(name: str, last: int, **fields: Any) -> Route:
    return Route(f"{name}.localhost", RouteState.OPEN, Address(f"10.99.0.{last}", 8000), **fields)


PUBLIC, PRIVATE, H2C = route("public", 20), route("private", 21, token_hash=HASH), route("h2c", 22, h2c=True)


class Service:
    """The routes of a service that works, and its answers."""

    def __init__(self, folder: Path, term: int = 1) -> None:
        self.routes = RouteMap(folder / "routes.map")
        self.standbys = Standbys()
        previews = SimpleNamespace(_map=self.routes, standbys=self.standbys, hosts=self.routes.routes.keys())
        previews.routes_since = lambda version: HaproxyPreviews.routes_since(cast("HaproxyPreviews", previews), version)
        self.source = RouteSource(
            cast("HaproxyPreviews", previews), term, lambda ip: THERE if ip == "10.99.0.21" else "", lambda: HERE
        )

    def client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(transport=httpx.ASGITransport(self.source.app()), base_url="http://x")

    async def ask(self, path: str) -> bytes:
        async with self.client() as client:
            return (await client.get(path)).content

    async def post(self, path: str, content: bytes) -> bytes:
        async with self.client() as client:
            return (await client.post(path, content=content)).content


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[Service]:
    made = Service(tmp_path)
    for one in (PUBLIC, PRIVATE, H2C, Route("stopped.localhost", RouteState.STOPPED)):
        made.routes.put(one)
    yield made
    made.routes.close()


async def read(listing: RouteList, service: Service, at: Moment | None = None) -> tuple[bool, int]:
    """Bring the list up to date; return whether it changed, and how many routes the answer had."""
    content = await service.ask(listing.query)
    return listing.take(content, at or Moment()), len(json.loads(content)["routes"])


async def test_list_is_brought_up_to_date_by_changed_routes_alone(service: Service, tmp_path: Path) -> None:
    listing = RouteList()
    assert await read(listing, service) == (True, 3)
    assert listing.routes[PRIVATE.host] == ListedRoute(PRIVATE.host, Address("10.99.0.21", 8000), False, False, THERE)
    assert listing.routes[PUBLIC.host].via == HERE
    assert await read(listing, service) == (False, 0)
    service.routes.put(route("new", 23))
    service.routes.put(Route(PUBLIC.host, RouteState.PAUSED))
    service.routes.remove(H2C.host)
    assert await read(listing, service) == (True, 1)
    assert listing.routes.keys() == {PRIVATE.host, "new.localhost"}
    # Another run of a service: its versions mean something else.
    (tmp_path / "next").mkdir()
    successor = Service(tmp_path / "next", term=2)
    successor.routes.put(PUBLIC)
    assert await read(listing, successor) == (True, 1)
    assert (set(listing.routes), listing.term) == ({PUBLIC.host}, 2)
    successor.routes.close()


async def test_proxy_gets_plain_routes_alone_and_those_that_are_still_public(service: Service) -> None:
    listing = RouteList()
    await read(listing, service)
    assert listing.entries() == {PUBLIC.host: "open|public|10.99.0.20|8000|-|-"}
    assert listing.entries({PRIVATE.host, H2C.host}) == {}
    assert listing.hops(HERE) == {"10.99.0.21": THERE}
    assert listing.hops(THERE) == {"10.99.0.20": HERE, "10.99.0.22": HERE}


async def test_service_sends_no_list_before_its_engine_is_ready(service: Service) -> None:
    def unknown(ip: str) -> str:
        raise EngineUnavailable("The engine is not ready.")

    service.source._next_hop = unknown
    listing = RouteList()
    with pytest.raises(EngineUnavailable, match="not understood"):
        listing.take(await service.ask(listing.query), Moment())
    assert (listing.routes, listing.term) == ({}, None)


GOOD = {"term": 1, "version": "a-1", "whole": True, "routes": [], "closed": []}


@pytest.mark.parametrize(
    "answer",
    [
        [],
        {},
        {**GOOD, "routes": [["a.localhost", "10.99.0.20", 8000, True, False]]},
        {**GOOD, "routes": [["a b; quit", "10.99.0.20", 8000, True, False, HERE]]},
        {**GOOD, "routes": [["a.localhost", "10.99.0.20|8000; quit", 8000, True, False, HERE]]},
        {**GOOD, "routes": [["a.localhost", "10.99.0.20", 0, True, False, HERE]]},
        {**GOOD, "routes": [["a.localhost", "10.99.0.20", 8000, True, False, "10.98.0.11 dev eth0"]]},
        {**GOOD, "routes": [["a.localhost", "10.99.0.20", 8000, True, False, 5]]},
        {**GOOD, "routes": [["a.localhost", 5, 8000, True, False, HERE]]},
        {**GOOD, "routes": [[5, "10.99.0.20", 8000, True, False, HERE]]},
        {**GOOD, "term": None},
        {**GOOD, "closed": None},
    ],
)
def test_answer_that_is_no_list_changes_nothing(answer: object) -> None:
    listing = RouteList()
    listing.take(json.dumps(GOOD | {"routes": [["b.localhost", "10.99.0.1", 1, True, False, ""]]}).encode(), Moment())
    with pytest.raises(EngineUnavailable, match="not understood"):
        listing.take(json.dumps(answer).encode(), Moment())
    assert listing.routes.keys() == {"b.localhost"}


def taken(asked: Moment, term: int = 3) -> RouteList:
    listing = RouteList()
    listing.take(json.dumps({**GOOD, "term": term}).encode(), asked)
    return listing


def at(monkeypatch: pytest.MonkeyPatch, boot: float, wall: float) -> None:
    clocks = SimpleNamespace(clock_gettime=lambda _: boot, time=lambda: wall, CLOCK_BOOTTIME=7)
    monkeypatch.setattr(route_lists, "time", clocks)


def test_list_is_used_for_some_time_after_it_was_asked_for_and_after_the_lease_was_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    listing = taken(Moment(1000.0, 5000.0))
    at(monkeypatch, 1010.0, 5010.0)
    assert listing.until(SeenLease(3, True, Moment(1008.0, 5008.0))) == 5008 + LEASE_SECONDS
    assert listing.until(SeenLease(3, True, Moment(1010.0 - LEASE_SECONDS, 4995.0))) == 0, "read too long ago"
    at(monkeypatch, 1000.0 + LIST_SECONDS - 1, 5119.0)
    assert listing.until(SeenLease(3, True, Moment(1118.0, 5118.0))) == 5000 + LIST_SECONDS
    at(monkeypatch, 1000.0 + LIST_SECONDS, 5120.0)
    assert listing.until(SeenLease(3, True, Moment(1120.0, 5120.0))) == 0, "asked for too long ago"


@pytest.mark.parametrize("wall", [0.0, 4000.0, 90_000.0])
def test_clock_that_was_set_makes_no_list_last_longer(monkeypatch: pytest.MonkeyPatch, wall: float) -> None:
    listing = taken(Moment(1000.0, 5000.0))
    at(monkeypatch, 1000.0 + LIST_SECONDS, wall)
    assert listing.until(SeenLease(3, True, Moment(1119.0, wall))) == 0
    # A machine that was suspended: its time since the boot goes on.
    at(monkeypatch, 1100.0, wall)
    assert listing.until(SeenLease(3, True, Moment(1100.0 - LEASE_SECONDS, wall))) == 0


def test_list_is_used_in_no_other_term_and_not_while_a_service_works(monkeypatch: pytest.MonkeyPatch) -> None:
    listing = taken(Moment(1000.0, 5000.0))
    at(monkeypatch, 1001.0, 5001.0)
    now = Moment(1001.0, 5001.0)
    assert listing.until(SeenLease(3, True, now)) > 0
    assert listing.until(SeenLease(4, True, now)) == 0, "the next service may give the addresses to others"
    assert listing.until(SeenLease(2, True, now)) == 0
    assert listing.until(SeenLease(3, False, now)) == 0
    assert RouteList().until(SeenLease(3, True, now)) == 0


async def test_address_outlives_each_list_that_leads_to_it(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """The app ends right after a standby has asked. Its list may be used up to the last moment, and by its proxy later.

    A visit that was let through then dials for two seconds more.
    """
    now, ip = 1000.0, "10.99.0.20"
    monkeypatch.setattr(route_map, "time", SimpleNamespace(monotonic=lambda: now))
    at(monkeypatch, now, now)
    listing = RouteList()
    await read(listing, service)
    assert listing.term is not None
    service.routes.remove(PUBLIC.host)
    used = now
    while now < 1200.0:
        now += 1
        at(monkeypatch, now, now)
        if listing.until(SeenLease(listing.term, True, Moment())):
            used = now
        if now <= used + PROXY_SECONDS + 2:
            assert service.routes.is_reserved(ip)
    assert 1000.0 + LIST_SECONDS - 1 <= used < now - PROXY_SECONDS - 2
    assert not service.routes.is_reserved(ip)


async def test_list_of_10000_routes_is_sent_and_taken_over(tmp_path: Path) -> None:
    service, listing = Service(tmp_path), RouteList()
    for number in range(10_000):
        service.routes.put(route(f"n{number}", number % 250))
    assert await read(listing, service) == (True, 10_000)
    service.routes.put(route("n7", 9))
    assert await read(listing, service) == (True, 1)
    service.routes.close()
