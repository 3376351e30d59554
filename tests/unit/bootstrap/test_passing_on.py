"""A standby looks at the way to the service that works, leads its ports there, and says what is wrong with it."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from tests.unit.bootstrap.test_standby import FakeCluster, instance

from builderd.adapters.previews.haproxy.forwarder import Target
from builderd.bootstrap import direct_visits, passing_on, route_lists, worker_calls
from builderd.bootstrap.keys import make_keys
from builderd.bootstrap.membership import Membership
from builderd.bootstrap.passing_on import PassingOn
from builderd.bootstrap.route_lists import Moment, SeenLease
from builderd.bootstrap.worker_calls import NotReached, ask_readiness
from builderd.domain.cluster_services import CLAIM_AFTER, ClusterService
from builderd.domain.errors import EngineUnavailable, StoreUnavailable
from builderd.domain.route_list import LEASE_SECONDS
from builderd.operations import proxy_header
from builderd.settings import Settings

OWNER = ClusterService("1" * 16, "one.example", "/srv/one", "1.0", "disks", "aa", "/k", "SHA256:x", "/s")
DATA = {"engine": {"ready": True, "message": "ready"}}

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def service(answer: bytes, received: bytearray | None = None) -> AsyncIterator[Target]:
    """A port that answers each request with these bytes."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        content = await reader.readuntil(b"\r\n\r\n\0\r\nQUIT\n")
        content += await reader.readuntil(b"\r\n\r\n")
        if received is not None:
            received.extend(content)
        writer.write(answer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield Target("127.0.0.1", server.sockets[0].getsockname()[1], api=True, streams=True)


def answered(data: object, status: str = "200 OK") -> bytes:
    return f"HTTP/1.1 {status}\r\nConnection: close\r\n\r\n".encode() + json.dumps({"data": data}).encode()


@pytest.mark.parametrize("status", ["200 OK", "503 Service Unavailable"])
async def test_readiness_is_asked_as_by_a_client_of_the_standby(status: str) -> None:
    received = bytearray()
    async with service(answered(DATA, status), received) as target:
        assert await ask_readiness(target, "ab" * 32) == DATA
    header = proxy_header.parse(received)
    assert header is not None
    assert header.client[0] == "127.0.0.1"
    assert b"\xe0\x00\x40" + b"ab" * 32 in received[: header.size]
    assert received[header.size :].startswith(b"GET /readyz HTTP/1.1\r\n")


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"", "takes nothing from this member"),
        (b"SSH-2.0-x\r\n", "is no builderd"),
        (b"HTTP/1.1 200 OK\r\n\r\n<html>", "is no builderd"),
        (b"x" * 200_000, "is no builderd"),
    ],
)
async def test_answer_that_is_none_of_builderd_is_described(answer: bytes, reason: str) -> None:
    async with service(answer) as target:
        with pytest.raises(EngineUnavailable, match=reason) as raised:
            await ask_readiness(target, "ab" * 32)
    assert not isinstance(raised.value, NotReached)


@pytest.mark.parametrize(
    "answer", [answered(None), answered([1]), b"HTTP/1.1 503 x\r\n\r\n{}", b"HTTP/1.1 200\r\n\r\n[]"]
)
async def test_answer_of_the_proxy_in_front_of_the_api_is_no_readiness(answer: bytes) -> None:
    async with service(answer) as target:
        with pytest.raises(EngineUnavailable, match="its API does not answer"):
            await ask_readiness(target, "ab" * 32)


async def test_port_that_is_closed_differs_from_a_service_that_is_silent(
    unused_tcp_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(NotReached, match="is not reached"):
        await ask_readiness(Target("127.0.0.1", unused_tcp_port, api=True, streams=True), "ab" * 32)
    monkeypatch.setattr(worker_calls, "LOOK_SECONDS", 0.2)

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async with await asyncio.start_server(silent, "127.0.0.1", 0) as server:
        target = Target("127.0.0.1", server.sockets[0].getsockname()[1], api=True, streams=True)
        with pytest.raises(EngineUnavailable, match="does not answer within") as raised:
            await ask_readiness(target, "ab" * 32)
    assert not isinstance(raised.value, NotReached)


class FakeForwarder:
    """Keeps where the ports lead, as ``adapters.previews.haproxy.forwarder.Forwarder``."""

    def __init__(self) -> None:
        self.led: list[Target] = []
        self.listed: dict[str, str] = {}
        #: The times up to which the list may be used.
        self.allowed: list[int] = []
        #: Calls that end visits.
        self.ended = 0
        #: The proxy died before this command.
        self.refuses = ""
        #: The next look starts it anew; how often it was started.
        self.starts_anew, self.starts = False, 1
        self.serves_list = True
        #: The times up to which visits may be led directly, with the hosts of the list then.
        self.direct: list[tuple[int, frozenset[str]]] = []
        self.puts = 0
        #: Those of the cluster, and how many were put when the proxy was retired.
        self.hops: list[dict[str, str]] = []
        self.hops_at_end: list[int] = []

    async def put_list(self, routes: dict[str, str]) -> None:
        self._answer("put_list")
        self.listed = dict(routes)
        self.puts += 1

    async def allow_list(self, until: int) -> None:
        self._answer("allow_list")
        self.allowed.append(until)

    async def allow_direct(self, until: int) -> None:
        self._answer("allow_direct")
        self.direct.append((until, frozenset(self.listed)))

    async def counts(self, commands: Sequence[str]) -> list[str]:
        self._answer("counts")
        return [""] * len(commands)

    def _answer(self, command: str) -> None:
        if command == self.refuses:
            raise EngineUnavailable("The standby's proxy does not work.")

    async def end_visits(self) -> None:
        self.ended += 1

    async def retire(self, *, ends_visits: bool = False) -> None:
        self.ended += ends_visits
        self.hops_at_end.append(len(self.hops))

    async def run(self, options: object) -> bool:
        started, self.starts_anew = self.starts_anew, False
        if started:
            self.listed, self.starts = {}, self.starts + 1
        return started

    async def lead(self, target: Target) -> None:
        self.led.append(target)


async def no_hosts() -> list[str]:
    return []


def lease(term: int = 1, *, is_over: bool = False) -> SeenLease:
    return SeenLease(term, is_over, Moment())


@pytest.fixture
def passing(tmp_path: Path) -> PassingOn:
    settings = Settings(data_dir=tmp_path)
    make_keys(settings).load()
    forwarder = cast("Any", FakeForwarder())
    return PassingOn(Membership(settings, instance(settings), FakeCluster()), no_hosts, forwarder)


def led(passing: PassingOn) -> Target:
    return cast("FakeForwarder", passing._forwarder).led[-1]


async def test_ports_lead_to_the_owner_and_its_state_is_announced(passing: PassingOn) -> None:
    async with service(answered(DATA)) as target:
        passing.follow(replace(OWNER, address=f"127.0.0.1:{target.port}"), lease())
        await passing._look()
        assert (passing.way.worker, passing.way.fault, passing.way.readiness) == ("one.example", "", DATA)
        assert passing._membership.way == ""
        assert led(passing) == target


@pytest.mark.parametrize(("address", "reason"), [(None, "tells no address"), ("nonsense", "tells no address")])
async def test_owner_without_an_address_is_said(passing: PassingOn, address: str | None, reason: str) -> None:
    """An earlier version announces none, nor does a service on a machine that is no member."""
    async with service(answered(DATA)) as target:
        passing.follow(replace(OWNER, address=f"127.0.0.1:{target.port}"), lease())
        await passing._look()
    passing.follow(replace(OWNER, address=address), lease())
    await passing._look()
    assert (led(passing).api, led(passing).streams) == (True, True), "connections wait"
    passing._answered_at -= passing_on.HOLD_SECONDS
    passing._reached_at -= passing_on.HOLD_SECONDS
    await passing._look()
    assert (led(passing).api, led(passing).streams) == (False, False), "nothing goes to the earlier address"
    assert reason in passing.way.fault
    assert reason in (passing._membership.way or "")
    passing.follow(None, lease())
    await passing._look()
    assert passing.way.worker is None
    assert passing.way.fault
    assert (led(passing).api, led(passing).streams) == (False, False)


async def test_waiting_ends_after_some_seconds_and_previews_outlive_the_api(
    passing: PassingOn, unused_tcp_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(passing_on, "time", SimpleNamespace(monotonic=lambda: now))
    passing.follow(replace(OWNER, address=f"127.0.0.1:{unused_tcp_port}"), lease())
    await passing._look()
    assert (led(passing).api, led(passing).streams) == (True, True), "connections wait"
    now += passing_on.HOLD_SECONDS
    await passing._look()
    assert (led(passing).api, led(passing).streams) == (False, False)
    async with service(b"") as target:
        passing.follow(replace(OWNER, address=f"127.0.0.1:{target.port}"), lease())
        await passing._look()
        assert (led(passing).api, led(passing).streams) == (True, True), "another address: they wait anew"
        now += passing_on.HOLD_SECONDS - 1
        await passing._look()
        now += passing_on.HOLD_SECONDS - 1
        await passing._look()
        assert (led(passing).api, led(passing).streams) == (False, True)
    assert "takes nothing from this member" in passing.way.fault


# The list of routes


VISITED, CHANGED = "visited.localhost", "changed.localhost"


@dataclass
class Listing:
    """A standby that has a list of two public apps, of which the first lies on another member."""

    passing: PassingOn
    port: int
    #: Public hosts by the database; None while it is away.
    public: list[str] | None = field(default_factory=lambda: [VISITED])

    async def visited_hosts(self) -> list[str]:
        if self.public is None:
            raise StoreUnavailable("The database does not answer.")
        return self.public

    def read(self, term: int = 1) -> None:
        routes = [[VISITED, "10.99.0.20", 1, True, False, "10.98.0.12"], [CHANGED, "10.99.0.21", 1, True, False, ""]]
        answer = {"term": term, "version": "a-1", "whole": True, "routes": routes, "closed": []}
        self.passing.list.take(json.dumps(answer).encode(), Moment())

    async def look(self, *, is_over: bool, term: int = 1) -> None:
        self.passing.follow(replace(OWNER, address=f"127.0.0.1:{self.port}"), lease(term, is_over=is_over))
        await self.passing._look()

    @property
    def forwarder(self) -> FakeForwarder:
        return cast("FakeForwarder", self.passing._forwarder)

    @property
    def cluster(self) -> FakeCluster:
        return cast("FakeCluster", self.passing._membership.provider)

    @property
    def hops(self) -> list[dict[str, str]]:
        return self.cluster.hops


@pytest.fixture
async def listing(passing: PassingOn, unused_tcp_port: int) -> Listing:
    made = Listing(passing, unused_tcp_port)
    passing._visited_hosts = made.visited_hosts
    made.forwarder.hops = made.hops
    await passing._membership.describe()
    made.read()
    return made


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


async def test_service_that_vanishes_while_it_sends_its_list_is_given_up_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_calls, "LOOK_SECONDS", 0.2)

    async def vanish(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n{")
        await reader.read()
        writer.close()

    async with await asyncio.start_server(vanish, "127.0.0.1", 0) as server:
        target = Target("127.0.0.1", server.sockets[0].getsockname()[1], api=True, streams=True)
        async with asyncio.timeout(worker_calls.LIST_READ_SECONDS):
            with pytest.raises(EngineUnavailable, match=r"stopped for 0\.2 s"):
                await worker_calls.ask_routes(target, "ab" * 32, "/routes")


async def test_list_that_is_too_long_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_calls, "MAX_LIST", 2_000_000)
    async with service(b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 3_000_000) as target:
        with pytest.raises(EngineUnavailable, match="is longer than 2 MB"):
            await worker_calls.ask_routes(target, "ab" * 32, "/routes")


async def test_routes_are_read_as_a_member_and_what_is_no_list_is_refused() -> None:
    received = bytearray()
    async with service(b"HTTP/1.1 200 OK\r\n\r\n{}", received) as target:
        assert await worker_calls.ask_routes(target, "ab" * 32, "/routes?since=") == b"{}"
    header = proxy_header.parse(received)
    assert header is not None
    assert b"\xe1\x00\x06routes" in received[: header.size]
    assert received[header.size :].startswith(b"GET /routes?since= HTTP/1.1\r\n")
    for answer in (b"", b"HTTP/1.1 503 x\r\n\r\n{}", b"SSH-2.0-x\r\n"):
        async with service(answer) as target:
            with pytest.raises(EngineUnavailable, match="tells no routes now"):
                await worker_calls.ask_routes(target, "ab" * 32, "/routes")
