"""A standby leads visits by its list of routes once nobody works, and no longer than the list may be used."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from types import SimpleNamespace

import pytest
from tests.unit.bootstrap.fake_worker import DATA, service
from tests.unit.bootstrap.passing_on.listing import CHANGED, OWNER, VISITED, Listing, lease, led

from builderd.adapters.previews.haproxy.forwarder import Target
from builderd.bootstrap import direct_visits, passing_on, route_lists
from builderd.bootstrap.passing_on import PassingOn
from builderd.bootstrap.route_lists import Moment
from builderd.domain.cluster_services import CLAIM_AFTER
from builderd.domain.errors import EngineUnavailable
from builderd.domain.route_list import LEASE_SECONDS


async def test_visits_are_served_by_the_list_once_nobody_works(listing: Listing) -> None:
    await listing.look(is_over=False)
    assert (led(listing.passing).listed, led(listing.passing).streams) == (False, True), "they wait"
    assert listing.forwarder.allowed == []
    await listing.look(is_over=True)
    assert (led(listing.passing).listed, led(listing.passing).api) == (True, True)
    assert listing.forwarder.listed.keys() == {VISITED}, "the other one is not public any more"
    assert listing.hops == [{"10.99.0.20": "10.98.0.12"}]
    assert 0 < listing.forwarder.allowed[-1] - time.time() <= LEASE_SECONDS
    listing.public = []
    await listing.look(is_over=True)
    assert listing.forwarder.listed == {}


async def test_routes_in_use_are_looked_at_again(listing: Listing) -> None:
    """A restarted network daemon removes them."""
    await listing.look(is_over=True)
    await listing.look(is_over=True)
    assert listing.hops == [{"10.99.0.20": "10.98.0.12"}] * 2


async def test_visits_wait_for_the_lease_to_be_over_and_no_longer(
    listing: Listing, monkeypatch: pytest.MonkeyPatch
) -> None:
    began = time.monotonic()
    for later, waits in ((passing_on.HOLD_SECONDS + 1, True), (passing_on.HOLD_SECONDS + CLAIM_AFTER, False)):
        monkeypatch.setattr(passing_on, "time", SimpleNamespace(monotonic=lambda later=later: began + later))
        listing.passing._reached_at = began
        listing.passing._seen = f"127.0.0.1:{listing.port}", 1
        await listing.look(is_over=False)
        assert led(listing.passing).streams is waits


async def test_list_is_not_used_while_the_service_is_reached(listing: Listing) -> None:
    await listing.look(is_over=True)
    assert led(listing.passing).listed
    async with service(b"") as target:
        listing.port = target.port
        await listing.look(is_over=True)
    assert led(listing.passing) == replace(target, api=True)
    assert listing.forwarder.allowed[-1] == 0
    assert listing.forwarder.listed.keys() == {VISITED, CHANGED}, "ready for the next time"


def later(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    now = time.monotonic() + seconds
    monkeypatch.setattr(passing_on, "time", SimpleNamespace(monotonic=lambda: now))


async def test_open_visits_have_some_seconds_and_end_with_their_way(
    listing: Listing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A WebSocket to an app of another member would hang for long: its packets would go to this machine's bridge."""
    await listing.look(is_over=True)
    await listing.look(is_over=False, term=2)
    await listing.look(is_over=False, term=2)
    assert (listing.forwarder.allowed[-1], listing.forwarder.ended, {} in listing.hops) == (0, 0, False)
    led = len(listing.hops)
    later(monkeypatch, passing_on.VISIT_SECONDS)
    for _ in range(2):
        await listing.look(is_over=False, term=2)
        assert (listing.forwarder.ended, listing.hops[led:]) == (1, [{}])


async def test_visits_within_one_member_go_on(listing: Listing, monkeypatch: pytest.MonkeyPatch) -> None:
    listing.passing.list.routes.pop(VISITED)
    listing.public = [CHANGED]
    await listing.look(is_over=True)
    await listing.look(is_over=False, term=2)
    later(monkeypatch, passing_on.VISIT_SECONDS)
    await listing.look(is_over=False, term=2)
    assert (listing.forwarder.ended, listing.hops) == (0, [])


@pytest.mark.parametrize("dies", ["before its use", "at its end"])
async def test_routes_of_a_list_go_although_the_proxy_died(
    listing: Listing, monkeypatch: pytest.MonkeyPatch, dies: str
) -> None:
    """An app of this member that gets such an address later would not be reached."""
    listing.forwarder.refuses = "allow_list" if dies == "before its use" else ""
    with suppress(EngineUnavailable):
        await listing.look(is_over=True)
    assert listing.hops == [{"10.99.0.20": "10.98.0.12"}]
    listing.forwarder.refuses = "allow_list"
    with suppress(EngineUnavailable):
        await listing.look(is_over=False, term=2)
    later(monkeypatch, passing_on.VISIT_SECONDS)
    await listing.look(is_over=False, term=2)
    assert listing.hops[-1] == {}


async def test_routes_that_cannot_be_removed_are_removed_at_the_next_look(
    listing: Listing, monkeypatch: pytest.MonkeyPatch
) -> None:
    await listing.look(is_over=True)
    await listing.look(is_over=False, term=2)
    later(monkeypatch, passing_on.VISIT_SECONDS)
    put = listing.cluster.put_standby_routes

    async def fail(hops: object) -> None:
        raise EngineUnavailable("The program ip cannot be run.")

    monkeypatch.setattr(listing.cluster, "put_standby_routes", fail)
    await listing.look(is_over=False, term=2)
    monkeypatch.setattr(listing.cluster, "put_standby_routes", put)
    await listing.look(is_over=False, term=2)
    assert listing.hops[-1] == {}


async def test_list_ends_where_the_next_service_tells_no_address(listing: Listing) -> None:
    """A service of an earlier version gives addresses at once."""
    await listing.look(is_over=True)
    listing.passing.follow(replace(OWNER, address=None), lease(2))
    await listing.passing._look()
    assert listing.forwarder.allowed[-1] == 0
    assert not led(listing.passing).listed


async def test_list_is_not_used_before_the_database_says_what_is_public(
    listing: Listing, caplog: pytest.LogCaptureFixture
) -> None:
    listing.public = None
    await listing.look(is_over=True)
    assert "list of routes not used, what is public is not known" in caplog.text
    assert "not read" not in caplog.text
    assert listing.forwarder.allowed == []
    assert not led(listing.passing).listed


@pytest.mark.parametrize("later", [LEASE_SECONDS - 2, LEASE_SECONDS + 1])
async def test_lease_that_was_read_too_long_ago_allows_no_list(
    listing: Listing, monkeypatch: pytest.MonkeyPatch, later: float
) -> None:
    """The database took that long to say what is public. Meanwhile the machine's clock was set back."""
    boot, wall = time.clock_gettime(time.CLOCK_BOOTTIME), time.time()

    async def slow() -> list[str]:
        clocks = {"clock_gettime": lambda _: boot + later, "time": lambda: wall - 3600, "CLOCK_BOOTTIME": 7}
        monkeypatch.setattr(route_lists, "time", SimpleNamespace(**clocks))
        return [VISITED]

    listing.passing._visited_hosts = slow
    await listing.look(is_over=True)
    assert bool(listing.forwarder.allowed) is (later < LEASE_SECONDS)


async def test_list_gets_no_more_time_from_a_lease_that_was_read_too_long_ago(
    listing: Listing, monkeypatch: pytest.MonkeyPatch
) -> None:
    await listing.look(is_over=True)
    (until,) = listing.forwarder.allowed
    listing.public = []
    await listing.look(is_over=False)
    assert listing.forwarder.allowed == [until], "it gets no more time"
    assert led(listing.passing).listed
    assert listing.forwarder.listed == {}, "what became private meanwhile is not served"
    monkeypatch.setattr(passing_on, "Moment", lambda: Moment(0.0, until + 1.0))
    await listing.look(is_over=False)
    assert not led(listing.passing).listed
    assert listing.forwarder.allowed[-1] == 0


async def test_list_ends_once_another_service_has_the_lease_and_visits_wait_for_it(
    listing: Listing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine that was paused is late by as much: its clocks stood still, those of the other services did not."""
    await listing.look(is_over=True)
    later(monkeypatch, passing_on.HOLD_SECONDS)
    await listing.look(is_over=True)
    assert (led(listing.passing).listed, led(listing.passing).streams) == (True, False)
    await listing.look(is_over=False, term=2)
    assert listing.forwarder.allowed[-1] == 0
    assert (led(listing.passing).listed, led(listing.passing).streams) == (False, True)


async def test_routes_and_visits_stay_for_the_service_itself_when_it_takes_over(listing: Listing) -> None:
    listing.passing._lease = lease(1, is_over=True)
    await listing.passing.close(replace(OWNER, address="127.0.0.1:1"))
    assert (listing.hops, listing.forwarder.ended) == ([{"10.99.0.20": "10.98.0.12"}], 0)
    assert listing.forwarder.hops_at_end == [1], "the ports are closed for no longer than it takes"
    await listing.passing.close()
    assert [hops for hops in listing.hops if hops != listing.hops[0]] == [{}]


async def test_standby_that_ends_takes_the_way_and_the_visits_of_its_list_along(listing: Listing) -> None:
    await listing.look(is_over=True)
    await listing.passing.close()
    assert (listing.hops[1:], listing.forwarder.ended) == ([{}], 1)


async def test_service_that_never_stood_by_changes_no_route(listing: Listing, passing: PassingOn) -> None:
    for successor in (OWNER, None):
        await passing.close(successor)
    assert listing.hops == []


async def test_list_is_read_while_the_service_answers_and_no_visit_led_directly_once_it_does_not(
    listing: Listing, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bytes] = []

    async def ask(target: Target, secret: str, path: str, report: bytes = b"") -> bytes:
        asked.append(report)
        told = {"term": 1, "version": "a-1", "whole": False, "routes": [], "closed": []}
        return json.dumps(told | {"mark": 0, "asked": [], "recount": False}).encode()

    monkeypatch.setattr(passing_on, "ask_readiness", answers(DATA))
    monkeypatch.setattr(direct_visits, "ask_routes", ask)
    await listing.look(is_over=False)
    async with asyncio.timeout(10):
        while len(asked) < 3:
            await asyncio.sleep(0.01)
    assert listing.forwarder.direct[-1][0] > time.time()
    assert listing.forwarder.listed.keys() == listing.forwarder.direct[-1][1] == {VISITED, CHANGED}
    assert listing.hops == [{"10.99.0.20": "10.98.0.12"}]
    monkeypatch.setattr(passing_on, "ask_readiness", fails)
    await listing.look(is_over=False)
    count = len(asked)
    assert listing.forwarder.direct[-1][0] == 0
    await asyncio.sleep(0.3)
    assert len(asked) == count
    await listing.passing.close()
    assert [hops for hops in listing.hops if hops != listing.hops[0]] == [{}]


async def fails(*_: object) -> object:
    raise EngineUnavailable("its API does not answer")


def answers(content: object) -> Callable[..., Awaitable[object]]:
    async def answer(*_: object) -> object:
        return content

    return answer
