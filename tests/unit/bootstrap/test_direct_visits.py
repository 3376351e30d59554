"""A standby leads visits directly by what the service that works has just confirmed, and by nothing else."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import pytest
from tests.unit.bootstrap.fake_cluster import FakeCluster
from tests.unit.bootstrap.fake_forwarder import FakeForwarder
from tests.unit.bootstrap.test_route_lists import HERE, PUBLIC, THERE, Service, route

from builderd.adapters.previews.haproxy.forwarder import Target
from builderd.adapters.previews.haproxy.standbys import Standbys
from builderd.bootstrap import direct_visits, route_lists
from builderd.bootstrap.direct_visits import DirectVisits
from builderd.bootstrap.route_lists import EXCHANGE_PATH, MAX_REPORT, Moment, RouteList, SeenLease
from builderd.bootstrap.standby_hops import StandbyHops
from builderd.bootstrap.worker_calls import NoExchange
from builderd.domain.errors import EngineUnavailable
from builderd.domain.route_list import DIRECT_LEASE_SECONDS, DIRECT_PROXY_SECONDS, DIRECT_SECONDS
from builderd.domain.standby_reports import StandbyReport, decode

TARGET = Target("10.98.0.12", 1, api=True, streams=True)


class Exchange:
    """A standby and the service that works, without a network between them."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.service = Service(folder)
        self.service.routes.put(PUBLIC)
        self.forwarder, self.cluster = FakeForwarder(), FakeCluster()
        self.lease: SeenLease | None = SeenLease(1, False, Moment())
        self.list = RouteList()
        self.direct = DirectVisits(
            cast("Any", self.forwarder), self.list, StandbyHops(self.cluster), lambda: self.lease, lambda: THERE
        )
        self.reports: list[StandbyReport] = []
        #: Answers that are lost.
        self.loses = 0
        monkeypatch.setattr(direct_visits, "ask_routes", self._ask)
        monkeypatch.setattr(route_lists, "EXCHANGE_SECONDS", 0.02)

    async def _ask(self, target: Target, secret: str, path: str, report: bytes = b"") -> bytes:
        content = await self.service.post(path, report) if report else await self.service.ask(path)
        if report:
            self.reports.append(decode(report))
        if self.loses:
            self.loses -= 1
            raise EngineUnavailable("its routes stopped for 4 s")
        return content

    async def ask(self, times: int = 1) -> None:
        for _ in range(times):
            await self.direct._ask(TARGET, "ab")

    @property
    def standbys(self) -> Standbys:
        return self.service.standbys

    def close(self) -> asyncio.Task[None]:
        """Close the route as the service does, and begin to wait for it."""
        self.service.routes.remove(PUBLIC.host)
        self.standbys.close(PUBLIC.host)
        return asyncio.create_task(self.standbys.closed(PUBLIC.host))

    @property
    def until(self) -> int:
        return self.forwarder.direct[-1][0] if self.forwarder.direct else 0


@pytest.fixture
async def exchange(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Exchange]:
    made = Exchange(tmp_path, monkeypatch)
    yield made
    await made.direct.stop()
    made.service.routes.close()


async def test_visits_are_led_once_the_proxy_has_the_list_and_the_kernel_the_way(exchange: Exchange) -> None:
    await exchange.ask()
    assert exchange.cluster.hops == [{"10.99.0.20": HERE}]
    until, hosts = exchange.forwarder.direct[-1]
    assert hosts == {PUBLIC.host}
    assert 0 < until - time.time() <= DIRECT_SECONDS


async def test_closed_route_is_acknowledged_once_the_proxy_lacks_it(exchange: Exchange) -> None:
    await exchange.ask(2)
    closing = exchange.close()
    await exchange.ask()
    await asyncio.sleep(0.01)
    assert (exchange.forwarder.listed, closing.done()) == ({}, False)
    await exchange.ask()
    await asyncio.wait_for(closing, 0.1)
    assert exchange.reports[-1].open == {PUBLIC.host: 0}


async def test_refused_change_of_the_proxy_is_no_acknowledgement(exchange: Exchange) -> None:
    await exchange.ask(2)
    closing = exchange.close()
    exchange.forwarder.refuses = "put_list"
    for _ in range(3):
        with pytest.raises(EngineUnavailable):
            await exchange.ask()
    await asyncio.sleep(0.01)
    assert ({one.mark for one in exchange.reports}, closing.done()) == ({0}, False)
    exchange.forwarder.refuses = ""
    await exchange.ask(2)
    await asyncio.wait_for(closing, 0.1)
    assert exchange.forwarder.listed == {}


async def test_standby_that_cannot_apply_an_answer_takes_no_permission_before_it_can(exchange: Exchange) -> None:
    await exchange.ask(2)
    allowed = len(exchange.forwarder.direct)
    exchange.close().cancel()
    exchange.forwarder.refuses = "put_list"
    for _ in range(3):
        with pytest.raises(EngineUnavailable):
            await exchange.ask()
    assert [one.leads for one in exchange.reports] == [True, True, True, False, False]
    exchange.forwarder.refuses = ""
    assert await exchange.direct._ask(TARGET, "ab") == 0.0, "the next question comes at once"
    assert len(exchange.forwarder.direct) == allowed
    await exchange.ask()
    assert (exchange.reports[-2].leads, exchange.reports[-1].leads) == (False, True)
    assert len(exchange.forwarder.direct) == allowed + 1


async def test_kernel_gets_no_routes_while_the_lease_allows_no_visits(exchange: Exchange) -> None:
    """The standby removes them meanwhile, again and again."""
    exchange.lease = None
    await exchange.ask(2)
    assert (exchange.cluster.hops, exchange.until) == ([], 0)
    exchange.lease = SeenLease(1, False, Moment())
    await exchange.ask()
    assert exchange.cluster.hops == [{"10.99.0.20": HERE}]
    assert exchange.until


async def test_routes_that_changed_while_the_lease_allowed_no_visits_are_put_first(exchange: Exchange) -> None:
    await exchange.ask()
    exchange.lease = None
    exchange.service.routes.put(route("new", 24))
    await exchange.ask()
    exchange.lease = SeenLease(1, False, Moment())
    await exchange.ask()
    assert exchange.cluster.hops[-1] == {"10.99.0.20": HERE, "10.99.0.24": HERE}


async def test_change_of_routes_that_was_cancelled_is_made_before_visits_are_led(
    exchange: Exchange, monkeypatch: pytest.MonkeyPatch
) -> None:
    await exchange.ask()

    async def hang(hops: object) -> list[str]:
        await asyncio.sleep(60)
        return []

    exchange.service.routes.put(route("new", 24))
    with monkeypatch.context() as patch:
        patch.setattr(exchange.cluster, "put_standby_routes", hang)
        asking = asyncio.create_task(exchange.ask())
        await asyncio.sleep(0.1)
        asking.cancel()
        await asyncio.wait({asking})
    await exchange.ask(2)
    assert exchange.cluster.hops[-1] == {"10.99.0.20": HERE, "10.99.0.24": HERE}
    assert exchange.forwarder.direct[-1][1] == {PUBLIC.host, "new.localhost"}


async def test_visits_of_apps_that_are_not_reached_are_passed_on(
    exchange: Exchange, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = ["10.99.0.24"]

    async def put(hops: object) -> list[str]:
        return lost

    monkeypatch.setattr(exchange.cluster, "put_standby_routes", put)
    exchange.service.routes.put(route("new", 24))
    await exchange.ask()
    assert exchange.forwarder.direct[-1][1] == {PUBLIC.host}
    lost.clear()
    await exchange.direct._hops.renew()
    await exchange.ask()
    assert exchange.forwarder.direct[-1][1] == {PUBLIC.host, "new.localhost"}


async def test_lost_answer_is_asked_for_again_with_all_that_the_report_had(exchange: Exchange) -> None:
    await exchange.ask(2)
    closing = exchange.close()
    await exchange.ask()
    exchange.loses = 1
    with pytest.raises(EngineUnavailable):
        await exchange.ask()
    await exchange.ask()
    assert exchange.reports[-1].open == exchange.reports[-2].open == {PUBLIC.host: 0}
    await asyncio.wait_for(closing, 0.1)


async def test_proxy_that_was_started_again_acknowledges_nothing_of_the_one_before(exchange: Exchange) -> None:
    """The one before may not have taken its permission's end: its time alone ends it."""
    await exchange.ask(2)
    exchange.forwarder.starts += 1
    exchange.forwarder.listed = {}
    closing = exchange.close()
    await exchange.ask(3)
    await asyncio.sleep(0.01)
    assert not closing.done()
    assert len({one.standby for one in exchange.reports}) == 2
    closing.cancel()


async def test_proxy_that_is_started_again_meanwhile_leads_nothing_by_that_answer(exchange: Exchange) -> None:
    answer = exchange._ask

    async def start(target: Target, secret: str, path: str, report: bytes = b"") -> bytes:
        exchange.forwarder.starts += 1
        return await answer(target, secret, path, report)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(direct_visits, "ask_routes", start)
        with pytest.raises(EngineUnavailable, match="started again"):
            await exchange.ask()
    assert exchange.until == 0
    await exchange.ask(2)
    assert exchange.forwarder.direct[-1][1] == {PUBLIC.host}


async def test_acknowledgements_of_an_earlier_run_of_the_service_are_none(exchange: Exchange, tmp_path: Path) -> None:
    await exchange.ask(2)
    closing = exchange.close()
    await exchange.ask(2)
    await closing
    exchange.service.routes.close()
    (tmp_path / "next").mkdir()
    exchange.service = Service(tmp_path / "next")
    exchange.service.routes.put(PUBLIC)
    exchange.forwarder.refuses = "put_list"
    for _ in range(2):
        with pytest.raises(EngineUnavailable):
            await exchange.ask()
    assert exchange.reports[-1].version.startswith(exchange.service.source._run)
    assert exchange.reports[-1].mark == 0


@pytest.mark.parametrize(
    "lease",
    [
        None,
        SeenLease(2, False, Moment()),
        SeenLease(1, True, Moment()),
        SeenLease(1, False, Moment(time.clock_gettime(time.CLOCK_BOOTTIME) - DIRECT_LEASE_SECONDS, time.time())),
    ],
    ids=["unknown", "of another service", "over", "read too long ago"],
)
async def test_nothing_is_led_by_a_service_that_may_not_work(exchange: Exchange, lease: SeenLease | None) -> None:
    await exchange.ask()
    assert exchange.until
    exchange.lease = lease
    await exchange.ask()
    assert exchange.until == 0


async def test_answer_that_took_too_long_leads_nothing(exchange: Exchange, monkeypatch: pytest.MonkeyPatch) -> None:
    await exchange.ask()
    late = DIRECT_PROXY_SECONDS
    past = Moment(time.clock_gettime(time.CLOCK_BOOTTIME) - late, time.time() - late)
    monkeypatch.setattr(direct_visits, "Moment", lambda: past)
    await exchange.ask()
    assert exchange.until == 0


async def test_nothing_is_led_where_apps_of_other_members_are_not_reached(
    exchange: Exchange, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(hops: object) -> None:
        raise EngineUnavailable("The program ip cannot be run.")

    with monkeypatch.context() as patch:
        patch.setattr(exchange.cluster, "put_standby_routes", fail)
        with pytest.raises(EngineUnavailable, match="not reached from here"):
            await exchange.ask()
    assert (exchange.until, exchange.forwarder.listed) == (0, {})
    await exchange.ask(2)
    assert exchange.until


async def test_way_of_a_closed_route_stays_for_visits_that_are_open(
    exchange: Exchange, monkeypatch: pytest.MonkeyPatch
) -> None:
    await exchange.ask(2)
    exchange.close().cancel()
    exchange.service.routes.put(route("new", 24))
    await exchange.ask()
    assert exchange.cluster.hops[-1] == {"10.99.0.20": HERE, "10.99.0.24": HERE}
    monkeypatch.setattr("builderd.bootstrap.standby_hops.LEFT_SECONDS", 0.0)
    exchange.service.routes.put(route("more", 25))
    await exchange.ask(2)
    assert exchange.cluster.hops[-1].keys() == {"10.99.0.24", "10.99.0.25"}


async def test_service_of_an_earlier_version_tells_its_list_and_nothing_is_led_directly(
    exchange: Exchange, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def ask(target: Target, secret: str, path: str, report: bytes = b"") -> bytes:
        if report:
            raise NoExchange("it is of an earlier version")
        return await exchange.service.ask(path)

    monkeypatch.setattr(direct_visits, "ask_routes", ask)
    await exchange.ask()
    assert (set(exchange.forwarder.listed), exchange.until) == ({PUBLIC.host}, 0)


async def test_standby_whose_visits_are_encrypted_keeps_the_list_alone(exchange: Exchange) -> None:
    exchange.forwarder.serves_list = False
    await exchange.ask()
    assert (set(exchange.list.routes), exchange.until) == ({PUBLIC.host}, 0)
    assert exchange.reports == []


async def test_failed_question_gives_no_permission_and_the_next_one_does(
    exchange: Exchange, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(direct_visits, "RETRY_INTERVAL", 0.05)
    exchange.direct.start(TARGET, "ab")
    async with asyncio.timeout(5):
        while not exchange.until:
            await asyncio.sleep(0.01)
        exchange.loses = 5
        while exchange.loses > 3:
            await asyncio.sleep(0.01)
        allowed = len(exchange.forwarder.direct)
        while exchange.loses:
            await asyncio.sleep(0.01)
        assert "stopped" in exchange.direct.fault
        assert len(exchange.forwarder.direct) == allowed
        while len(exchange.forwarder.direct) == allowed:
            await asyncio.sleep(0.01)
    await exchange.direct.stop()
    assert exchange.until == 0


@pytest.mark.parametrize(
    ("content", "status"),
    [(b"", 400), (b"{}", 400), (b"[1]", 400), (b"x" * 100_000, 400), (b"x" * (MAX_REPORT + 1), 413)],
)
async def test_report_that_is_none_is_refused(exchange: Exchange, content: bytes, status: int) -> None:
    answer = await exchange.service.client().post(EXCHANGE_PATH, content=content)
    assert answer.status_code == status, answer.text
    assert exchange.standbys._known == {}


async def test_answer_with_hosts_that_are_none_is_not_understood(exchange: Exchange) -> None:
    """Hosts become a part of the proxy's commands."""
    content = b'{"term":1,"version":"a-1","whole":true,"routes":[],"closed":[],"mark":1,"asked":["a; shutdown"]}'
    with pytest.raises(EngineUnavailable, match="not understood"):
        exchange.list.take(content, Moment())
