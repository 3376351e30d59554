"""A standby continues the work of the service that works, once that has ended and its previews with it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import pytest
from tests.unit.bootstrap.fake_cluster import FakeCluster
from tests.unit.bootstrap.standby.services import (
    HURRY,
    FakeProxy,
    Services,
    instance_id,
    share_keys,
)

from builderd.bootstrap import database_lease as leasing
from builderd.bootstrap import standby
from builderd.bootstrap.database import this_instance
from builderd.bootstrap.machine import describe_database
from builderd.core import members as database_lease
from builderd.core.members import DatabaseLease, LeaseLost
from builderd.database.lease import Services as StoredServices
from builderd.settings import Settings


async def test_standby_takes_over_at_once_from_a_service_that_ends_in_order(
    services: Services, one: Settings, two: Settings, proxy: FakeProxy
) -> None:
    first, second = await services.start_both(one, two)
    assert not second.works
    assert second.stood_by[-1] == this_instance(one).host_name
    assert proxy.deadlines.keys() == {one.data_dir}
    await first.stop()
    assert proxy.ended == [one.data_dir]
    await second.until(lambda: second.works)
    assert second.stood_by[-1] is None
    assert proxy.taken_down == [two.data_dir, two.data_dir]
    # What has ended is no standby.
    await second.until(lambda: not proxy.deadlines)


async def test_standby_continues_a_killed_service_after_its_previews_have_ended(
    services: Services,
    one: Settings,
    two: Settings,
    proxy: FakeProxy,
    cluster: FakeCluster,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wait, waited = standby.Standby.wait, []

    async def timed(self: standby.Standby) -> DatabaseLease:
        lease = await wait(self)
        waited.append((time.monotonic() - cluster.claimed_at, time.clock_gettime(time.CLOCK_BOOTTIME)))
        return lease

    monkeypatch.setattr(standby.Standby, "wait", timed)
    first, second = await services.start_both(one, two)
    await first.kill()
    await second.until(lambda: second.works)
    ((after_claim, taken_since_boot),) = waited
    assert after_claim >= database_lease.TAKE_AFTER_CLAIM
    # The fence looks once a second, and rounds up to one.
    assert taken_since_boot >= proxy.deadlines[one.data_dir] + 2 / HURRY
    assert cluster.claimed == second.owned.instance.member
    with pytest.raises(LeaseLost):
        await first.owned.store.write(lambda uow: uow.database_lease.renew(1))


async def test_claim_that_fails_is_repeated_at_the_next_look(
    services: Services, one: Settings, two: Settings, cluster: FakeCluster
) -> None:
    """Incus stores nothing for 20 s after a member was cut off."""
    first, second = await services.start_both(one, two)
    await first.kill()
    cluster.failing = 4
    await second.until(lambda: second.works)
    assert cluster.tried[-1] - cluster.tried[0] < database_lease.CLAIM_AFTER * 3


async def test_standby_whose_claim_another_one_replaced_claims_again_before_it_takes_over(
    services: Services, one: Settings, two: Settings, cluster: FakeCluster
) -> None:
    first, second = await services.start_both(one, two)
    own = instance_id(two)
    await first.kill()
    await second.until(lambda: cluster.claimed == own)
    claims, cluster.claimed = cluster.claims.count(own), "another"
    await second.until(lambda: second.works)
    assert cluster.claims.count(own) > claims


@pytest.mark.slow
async def test_service_that_works_is_left_alone(
    services: Services, one: Settings, two: Settings, cluster: FakeCluster
) -> None:
    first, second = await services.start_both(one, two)
    await asyncio.sleep(60 / HURRY)
    assert not second.works
    assert not first.task.done()
    assert set(cluster.claims) == {first.owned.instance.member}


async def test_standby_that_the_owner_does_not_know_never_takes_over(
    services: Services, one: Settings, two: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    """The owner's previews have no deadline."""
    first = await services.start_working(one)
    await first.until(lambda: bool(first.owned_at))
    async with asyncio.timeout(30):
        while not await services.store.read(lambda uow: uow.services.list()):
            await asyncio.sleep(0.01)
    await first.kill()
    second = services.start(two)
    await asyncio.sleep(60 / HURRY)
    assert not second.works
    assert "does not know this service" in caplog.text


@pytest.mark.slow
async def test_one_of_two_standbys_takes_over_and_the_other_stands_by_for_it(
    services: Services, one: Settings, two: Settings, make: Callable[[str], Settings]
) -> None:
    three = make("three")
    await share_keys(one, three)
    first = await services.start_working(one)
    second, third = services.start(two), services.start(three)
    await services.until_known("three", "two")
    await first.kill()
    await second.until(lambda: second.works or third.works)
    await services.until_known("three" if second.works else "two")
    assert second.works is not third.works


async def test_a_restarted_service_has_its_work_back_before_any_standby(
    services: Services, one: Settings, two: Settings, proxy: FakeProxy
) -> None:
    first, second = await services.start_both(one, two)
    await first.kill()
    await services.start_working(one)
    assert not second.works
    assert one.data_dir not in proxy.taken_down
    await services.until_known("two")
    assert proxy.ended == []


async def test_routes_of_an_earlier_term_go_before_the_lease_is_taken(
    services: Services, one: Settings, two: Settings, proxy: FakeProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A service that fails after it took the lease finds it its own at its next start, and trusts its routes."""
    first, second = await services.start_both(one, two)
    taken: list[int] = []
    take = leasing.Acquisition._take

    async def note(self: leasing.Acquisition, seen: DatabaseLease | None) -> DatabaseLease:
        before = len(proxy.taken_down)
        lease = await take(self, seen)
        taken.append(len(proxy.taken_down) - before)
        return lease

    monkeypatch.setattr(leasing.Acquisition, "_take", note)
    await first.stop()
    await second.until(lambda: second.works)
    assert taken == [1]


@pytest.mark.parametrize("killed", [False, True])
async def test_previews_have_no_deadline_once_the_standby_has_left(
    services: Services, one: Settings, two: Settings, proxy: FakeProxy, killed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = await services.start_both(one, two)
    with monkeypatch.context() as patch:
        if killed:
            patch.setattr(StoredServices, "remove", lambda *_: None)
        await second.kill()
    await services.until_known()
    await first.until(lambda: not proxy.deadlines)
    await first.stop()
    assert proxy.ended == [], "apps stay reachable while no service runs"


@pytest.mark.slow
async def test_doctor_names_the_standbys(
    services: Services, one: Settings, two: Settings, cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The look at the schema holds the standby's announcements up for a moment.
    monkeypatch.setattr(database_lease, "ALIVE_SECONDS", 15.0)
    first, second = await services.start_both(one, two)
    (_, standby_line) = await describe_database(one)
    assert "takes over if the owner ends" in standby_line
    # Nobody takes over meanwhile.
    cluster.away = True
    await first.kill()
    await services.store.write(lambda uow: uow.services.set_known([], 1))
    (_, standby_line) = await describe_database(two)
    assert "would not take over: the service that works has not noted it" in standby_line
    assert not second.works
