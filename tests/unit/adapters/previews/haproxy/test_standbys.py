"""Closed routes wait for each standby to acknowledge them, or for the end of its permission, and no longer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from builderd.adapters.previews.haproxy import standbys
from builderd.adapters.previews.haproxy.standbys import Standbys
from builderd.domain.errors import EngineUnavailable
from builderd.domain.previews import PreviewActivity
from builderd.domain.standby_reports import MOST, StandbyReport

HOST, OTHER = "app.localhost", "other.localhost"
HOSTS = {HOST, OTHER}
VISITED = PreviewActivity(5, 50, 500, 1, 0, 5, 0.0, answers_2xx=5, within_5_ms=5)


class Service:
    """Standbys of a service, and their questions."""

    def __init__(self) -> None:
        self.standbys = Standbys()

    def asks(self, report: StandbyReport, at: float | None = None, *, knows_run: bool = True) -> dict[str, object]:
        """Take a question and answer it at once."""
        at = time.monotonic() if at is None else at
        self.standbys.take(report, at, knows_run=knows_run, hosts=HOSTS)
        return self.standbys.answer(report.standby, at, leads=report.leads)

    def known(self, standby: str) -> StandbyReport:
        """Return a report of a standby that the service knows, and that knows all."""
        report = StandbyReport(standby, whole=True)
        told = self.asks(report)
        assert isinstance(told["mark"], int)
        return replace(report, mark=told["mark"], whole=False)

    @asynccontextmanager
    async def waiting(self, host: str = HOST) -> AsyncIterator[asyncio.Task[None]]:
        self.standbys.close(host)
        task = asyncio.create_task(self.standbys.closed(host))
        await asyncio.sleep(0.02)
        yield task
        task.cancel()


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Service:
    monkeypatch.setattr(standbys, "CLOSED_AFTER", 0.4)
    return Service()


async def test_service_without_standbys_waits_for_nothing(service: Service) -> None:
    async with service.waiting() as task:
        assert task.done()
    assert await service.standbys.open_requests(HOST) == 0


async def test_closed_route_waits_for_the_standby_that_acknowledges_it(service: Service) -> None:
    report = service.known("a")
    async with service.waiting() as task:
        assert not task.done()
        told = service.asks(report)
        assert (told["mark"], told["asked"]) == (1, [HOST])
        await asyncio.sleep(0.02)
        assert not task.done(), "it was told, and says nothing yet of what it has applied"
        service.asks(replace(report, mark=1))
        await asyncio.wait_for(task, 0.1)


async def test_closed_route_waits_for_all_standbys(service: Service) -> None:
    one, other = service.known("a"), service.known("b")
    async with service.waiting() as task:
        service.asks(replace(one, mark=1))
        await asyncio.sleep(0.02)
        assert not task.done()
        service.asks(replace(other, mark=1))
        await asyncio.wait_for(task, 0.1)


async def test_standby_that_never_acknowledges_costs_its_time_once_for_all_routes(service: Service) -> None:
    service.known("killed")
    began = time.monotonic()
    async with service.waiting() as one, service.waiting(OTHER) as other:
        await asyncio.gather(one, other)
    assert 0.35 < time.monotonic() - began < 0.7
    async with service.waiting() as task:
        assert task.done(), "it has not asked since"


async def test_standby_that_asks_and_applies_nothing_costs_its_time_once(service: Service) -> None:
    """A standby whose proxy refuses commands leads nothing by its answers, and says so."""
    report = service.known("a")
    began = time.monotonic()
    async with service.waiting() as task:
        while not task.done():
            service.asks(replace(report, leads=False))
            await asyncio.sleep(0.05)
    assert 0.35 < time.monotonic() - began < 0.7
    service.asks(replace(report, leads=False))
    async with service.waiting(OTHER) as task:
        assert task.done()
    service.asks(replace(report, mark=2))
    async with service.waiting() as task:
        assert not task.done(), "it leads again"


async def test_standby_that_acknowledges_late_is_waited_for_again(service: Service) -> None:
    report = service.known("slow")
    async with service.waiting() as task:
        await task
    report = replace(report, mark=1)
    service.asks(report)
    async with service.waiting() as task:
        assert not task.done()
        service.asks(replace(report, mark=2))
        await asyncio.wait_for(task, 0.1)


async def test_answer_that_is_under_way_counts_as_permission(service: Service) -> None:
    """The standby asked before the route was closed, and its answer was sent then."""
    report = service.known("a")
    await asyncio.sleep(0.3)
    service.asks(report)
    began = time.monotonic()
    async with service.waiting() as task:
        await task
    assert time.monotonic() - began > 0.3


@pytest.mark.parametrize("forged", [StandbyReport("stranger", mark=MOST), StandbyReport("a", mark=MOST)])
async def test_forged_mark_acknowledges_no_later_route(service: Service, forged: StandbyReport) -> None:
    service.known("a")
    service.asks(forged)
    async with service.waiting() as task:
        assert not task.done()


async def test_acknowledgement_of_another_run_of_the_service_is_none(service: Service) -> None:
    report = service.known("a")
    async with service.waiting() as task:
        service.asks(replace(report, mark=1), knows_run=False)
        await asyncio.sleep(0.02)
        assert not task.done()


async def test_cancelled_wait_for_a_closed_route_is_gone_on_with(service: Service) -> None:
    service.known("a")
    async with service.waiting() as task:
        task.cancel()
        await asyncio.wait({task})
        again = asyncio.create_task(service.standbys.closed(HOST))
        await asyncio.sleep(0.02)
        assert not again.done()
        await again


async def test_nothing_is_closed_before_standbys_of_an_earlier_service_have_ended(service: Service) -> None:
    began = time.monotonic()
    service.standbys.begin(began + 0.3, (HOST,))
    await asyncio.wait_for(service.standbys.closed("new.localhost"), 0.1)
    await asyncio.wait_for(service.standbys.closed(HOST, is_closed=False), 0.1)
    await service.standbys.closed(HOST)
    assert time.monotonic() - began >= 0.3


async def test_standby_is_answered_once_a_route_is_closed_or_after_some_time(service: Service) -> None:
    service.known("a")
    began = time.monotonic()
    await service.standbys.news("a", 0.2)
    assert time.monotonic() - began >= 0.2
    asking = asyncio.create_task(service.standbys.news("a", 20))
    await asyncio.sleep(0.02)
    assert not asking.done()
    service.standbys.close(HOST)
    await asyncio.wait_for(asking, 0.1)


async def test_open_requests_are_counted_after_they_were_asked_for(service: Service) -> None:
    report = replace(service.known("a"), open={HOST: 7})
    service.asks(report)
    asking = asyncio.create_task(service.standbys.open_requests(HOST))
    await asyncio.sleep(0.02)
    told = service.asks(report)
    assert (told["asked"], asking.done()) == ([HOST], False)
    service.asks(replace(report, mark=1, open={HOST: 2}))
    # The next report, which asks for nothing, may be here before the count is read.
    service.asks(replace(report, mark=1, open={}))
    assert await asking == 2


async def test_open_requests_of_a_standby_that_says_nothing_any_more_are_none(service: Service) -> None:
    service.asks(replace(service.known("a"), open={HOST: 2}))
    assert await service.standbys.open_requests(HOST) == 0


async def test_visits_are_counted_from_the_first_report_on(service: Service) -> None:
    """Visits before were counted by an earlier service, or are those of the time without one."""
    first = StandbyReport("a", whole=True, counts={HOST: VISITED})
    assert service.asks(replace(first, whole=False))["recount"]
    assert service.standbys.activity() == {}
    assert not service.asks(first)["recount"]
    later = replace(VISITED, requests=8, bytes_out=900, idle_seconds=0.0)
    new = PreviewActivity(2, 20, 200, 0, 0, 2, 3.0, class_times=(1,) * 33)
    service.asks(StandbyReport("a", counts={HOST: later, OTHER: new}))
    shown = service.standbys.activity()
    assert (shown[HOST].requests, shown[HOST].bytes_out, shown[HOST].answers_2xx) == (3, 400, 0)
    assert (shown[HOST].open_connections, shown[HOST].requests_per_minute) == (1, 5)
    assert (shown[OTHER].requests, shown[OTHER].class_times) == (2, (1,) * 33)
    assert 3.0 <= shown[OTHER].idle_seconds < 4.0


async def test_visits_of_a_standby_that_went_stay_and_those_that_were_open_do_not(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(standbys, "FORGOTTEN_AFTER", 0.5)
    service.known("a")
    service.asks(StandbyReport("a", counts={HOST: VISITED}))
    await asyncio.sleep(0.45)
    shown = service.standbys.activity()[HOST]
    assert (shown.requests, shown.open_connections, shown.requests_per_minute) == (5, 0, 0)
    await asyncio.sleep(0.1)
    service.known("b")
    assert list(service.standbys._known) == ["b"]
    service.asks(StandbyReport("b", counts={HOST: VISITED}))
    assert service.standbys.activity()[HOST].requests == 10


async def test_hosts_without_a_route_are_not_counted(service: Service) -> None:
    service.known("a")
    service.asks(StandbyReport("a", counts={"foreign.example": VISITED}, open={"foreign.example": 5}))
    assert service.standbys.activity() == {}


async def test_counter_that_went_down_counts_from_zero_and_never_below(service: Service) -> None:
    service.asks(StandbyReport("a", whole=True, counts={HOST: replace(VISITED, requests=MOST)}))
    service.asks(StandbyReport("a", counts={HOST: replace(VISITED, requests=2)}))
    assert service.standbys.activity()[HOST].requests == 2


async def test_number_of_standbys_is_bounded(service: Service) -> None:
    for number in range(standbys.MOST_STANDBYS):
        service.known(f"{number:x}")
    with pytest.raises(EngineUnavailable, match="more than 200 standbys"):
        service.known("fff")
    async with service.waiting() as task:
        await task
