"""Services of a cluster stand by for the one that works, and continue its work once its previews have ended."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import ClassVar

import pytest
from tests.stores import write_database
from tests.unit.bootstrap.test_database_lease import _execute

from builderd.adapters.stores.sql.database_lease import DatabaseLeases
from builderd.adapters.stores.sql.migrations import revisions
from builderd.adapters.stores.sql.services import Services as StoredServices
from builderd.adapters.stores.sql.store import SqlStore
from builderd.bootstrap import database_lease as leasing
from builderd.bootstrap import guarded_lease, membership, standby
from builderd.bootstrap.data_directory import LOCK_FILE
from builderd.bootstrap.database_lease import OwnedStore, owned_store
from builderd.bootstrap.guarded_lease import GuardedLease
from builderd.bootstrap.instance import this_instance
from builderd.bootstrap.machine import describe_database
from builderd.bootstrap.membership import Membership
from builderd.bootstrap.passing_on import VisitedHosts
from builderd.bootstrap.route_lists import Moment, RouteList, SeenLease
from builderd.bootstrap.supervisor import Supervisor
from builderd.domain import cluster_services
from builderd.domain.cluster_services import ClusterService
from builderd.domain.database_lease import RENEW_INTERVAL, DatabaseLease, DatabaseOwned, Instance, LeaseLost
from builderd.domain.errors import EngineUnavailable, StoreUnavailable
from builderd.domain.route_list import FIRST_ADDRESS_AFTER, LEASE_SECONDS, LIST_SECONDS, RESERVED_SECONDS
from builderd.ports.engine import MemberAddresses
from builderd.ports.store import UnitOfWork
from builderd.settings import Settings

#: The real times, so much shorter.
HURRY = 25


@dataclass
class FakeCluster:
    """A cluster as ``ports.engine.ClusterProvider``."""

    id: str = "cluster"
    claimed: str = ""
    away: bool = False
    #: Claims that fail first, and when each was tried.
    failing: int = 0
    tried: list[float] = field(default_factory=list)
    claimed_at: float = 0.0
    claims: list[str] = field(default_factory=list)
    #: Routes of a standby to apps, each time that they were put.
    hops: list[dict[str, str]] = field(default_factory=list)
    #: Lists of members that fail first.
    failing_lists: int = 0
    members: MemberAddresses = field(default_factory=lambda: MemberAddresses("10.98.0.11", ["10.98.0.11"]))

    async def disks_id(self) -> str:
        self._answer()
        return self.id

    async def addresses(self) -> MemberAddresses:
        self._answer()
        if self.failing_lists:
            self.failing_lists -= 1
            raise EngineUnavailable("The cluster did not answer within 3 s.")
        return self.members

    async def claimant(self) -> str:
        self._answer()
        return self.claimed

    async def put_standby_routes(self, hops: Mapping[str, str]) -> Collection[str]:
        self.hops.append(dict(hops))
        return ()

    async def claim(self, service: str) -> None:
        self._answer()
        if self.failing:
            self.failing -= 1
            self.tried.append(time.monotonic())
            raise EngineUnavailable("The cluster did not answer within 3 s.")
        self.claimed, self.claimed_at = service, time.monotonic()
        self.claims.append(service)

    def _answer(self) -> None:
        if self.away:
            raise EngineUnavailable("The cluster does not answer.")


class FakeProxy:
    """Fence and proxy of one machine, as the modules ``previews.haproxy.fence`` and ``process``."""

    def __init__(self) -> None:
        #: Data directory → the deadline of its previews.
        self.deadlines: dict[Path, float] = {}
        self.ended: list[Path] = []
        #: Data directories whose routes were removed.
        self.taken_down: list[Path] = []

    async def hold(self, files: object, until: float) -> None:
        self.deadlines[_folder(files)] = until

    async def lift(self, files: object) -> None:
        self.deadlines.pop(_folder(files), None)

    async def end(self, files: object) -> None:
        self.ended.append(_folder(files))

    async def take_down(self, files: object) -> None:
        self.taken_down.append(_folder(files))
        await self.lift(files)

    def is_past(self, service: Settings) -> bool:
        return self.deadlines[service.data_dir] <= time.clock_gettime(time.CLOCK_BOOTTIME)


class FakePassingOn:
    """A standby's ports, as ``bootstrap.passing_on.PassingOn``; all calls, by data directory, in ``CALLS``."""

    CALLS: ClassVar[list[tuple[str, str, object]]] = []
    #: By data directory.
    MADE: ClassVar[dict[str, FakePassingOn]] = {}

    def __init__(self, membership: Membership, visited_hosts: VisitedHosts) -> None:
        self._membership = membership
        self.visited_hosts = visited_hosts
        self.list = RouteList()
        self.leases: list[SeenLease] = []
        self.MADE[membership.settings.data_dir.name] = self
        self._name = membership.settings.data_dir.name

    async def open(self) -> None:
        self._membership.way = ""
        self.CALLS.append((self._name, "open", None))

    def follow(self, owner: ClusterService | None, lease: SeenLease) -> None:
        self.leases.append(lease)
        self.CALLS.append((self._name, "follow", owner.address if owner else None))

    async def close(self, successor: ClusterService | None = None) -> None:
        self.CALLS.append((self._name, "close", successor.address if successor else None))

    @classmethod
    def steps(cls, name: str) -> list[tuple[str, object]]:
        """Return the calls of one service, repeated ones once."""
        return [(step, value) for step, value in dict.fromkeys((s, v) for n, s, v in cls.CALLS if n == name)]


def _folder(files: object) -> Path:
    directory: Path = files.directory  # type: ignore[attr-defined]
    return directory.parent


@pytest.fixture
def cluster() -> FakeCluster:
    return FakeCluster()


@pytest.fixture
def proxy() -> FakeProxy:
    return FakeProxy()


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch, cluster: FakeCluster, proxy: FakeProxy) -> None:
    """Put the fakes in place, and divide all times by ``HURRY``."""
    monkeypatch.setattr(leasing, "make_membership", lambda settings, instance: Membership(settings, instance, cluster))
    for name in ("fence", "process"):
        monkeypatch.setattr(guarded_lease, name, proxy)
    monkeypatch.setattr(membership, "fence", proxy)
    monkeypatch.setattr(standby, "PassingOn", FakePassingOn)
    FakePassingOn.CALLS.clear()
    for module in (cluster_services, guarded_lease, standby, leasing):
        for name, seconds in vars(module).copy().items():
            if name.isupper() and isinstance(seconds, float) and name != "FORGET_AFTER":
                monkeypatch.setattr(module, name, seconds / HURRY)


@pytest.fixture
async def database(tmp_path: Path) -> str:
    await write_database(tmp_path / "shared.db")
    return f"sqlite:///{tmp_path}/shared.db"


@pytest.fixture
def make(tmp_path: Path, database: str, unused_tcp_port_factory: Callable[[], int]) -> Callable[[str], Settings]:
    def make(name: str) -> Settings:
        folder = tmp_path / name
        folder.mkdir()
        (folder / LOCK_FILE).touch()
        return Settings(data_dir=folder, database_url=database, port=unused_tcp_port_factory())

    return make


@pytest.fixture
def one(make: Callable[[str], Settings]) -> Settings:
    return make("one")


@pytest.fixture
async def two(make: Callable[[str], Settings], one: Settings) -> Settings:
    """Another service on the same database, with the same keys."""
    settings = make("two")
    await share_keys(one, settings)
    return settings


async def share_keys(source: Settings, target: Settings) -> None:
    described = Membership(source, instance(source), FakeCluster())
    await described.describe(make_keys_first=True)
    for name in ("vault.key", "ssh_host_key"):
        (target.data_dir / name).write_bytes((source.data_dir / name).read_bytes())
        (target.data_dir / name).chmod(0o600)


def instance_id(settings: Settings) -> str:
    return this_instance(settings).member


def instance(settings: Settings) -> Instance:
    return Instance("host", "host", str(settings.data_dir), settings.data_dir.name, "boot")


class Service:
    """A service that runs until it is stopped, killed or fails."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._entered = owned_store(settings, Supervisor(), take_over=False)
        self._owned: OwnedStore | None = None
        #: By the time since the boot.
        self.owned_at = 0.0
        self.task = asyncio.create_task(self._work())

    async def _work(self) -> None:
        self._owned = await self._entered.__aenter__()
        self.owned_at = time.clock_gettime(time.CLOCK_BOOTTIME)
        await self._owned.keep()

    @property
    def works(self) -> bool:
        return self._owned is not None

    @property
    def owned(self) -> OwnedStore:
        assert self._owned is not None
        return self._owned

    async def kill(self) -> None:
        """End it as by SIGKILL: nothing is released."""
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)

    async def stop(self) -> None:
        """End it as by SIGTERM."""
        await self.kill()
        if self._owned is not None:
            await self._entered.__aexit__(None, None, None)
            self._owned = None

    async def until(self, true: Callable[[], bool]) -> None:
        """Wait until it is true, but not for a service that has failed."""
        async with asyncio.timeout(30):
            while not true():
                if self.task.done():
                    self.task.result()
                await asyncio.sleep(0.005)


class Services:
    """Services on one database, and a look at it from outside."""

    def __init__(self, store: SqlStore) -> None:
        self.store = store
        self._started: list[Service] = []

    def start(self, settings: Settings) -> Service:
        self._started.append(Service(settings))
        return self._started[-1]

    async def start_working(self, settings: Settings) -> Service:
        service = self.start(settings)
        await service.until(lambda: service.works)
        return service

    async def known(self) -> list[str]:
        """Return the data directories of the standbys that the owner knows."""

        def look(uow: UnitOfWork) -> list[str]:
            lease = uow.database_lease.get()
            assert lease is not None
            return [Path(one.service.data_dir).name for one in uow.services.list() if one.known_in == lease.term]

        return sorted(await self.store.read(look))

    async def until_known(self, *names: str) -> None:
        async with asyncio.timeout(30):
            while await self.known() != list(names):
                for one in self._started:
                    if one.task.done() and not one.task.cancelled():
                        one.task.result()
                await asyncio.sleep(0.01)

    async def end(self) -> None:
        for one in self._started:
            await one.stop()


@pytest.fixture
async def services(database: str) -> AsyncIterator[Services]:
    store = SqlStore(database)
    running = Services(store)
    try:
        yield running
    finally:
        await running.end()
        await store.close()


# Taking over


async def test_standby_takes_over_at_once_from_a_service_that_ends_in_order(
    services: Services, one: Settings, two: Settings, proxy: FakeProxy
) -> None:
    first = await services.start_working(one)
    second = services.start(two)
    await services.until_known("two")
    assert not second.works
    assert proxy.deadlines.keys() == {one.data_dir}
    await first.stop()
    assert proxy.ended == [one.data_dir]
    await second.until(lambda: second.works)
    assert proxy.taken_down == [two.data_dir, two.data_dir]
    # What has ended is no standby.
    await second.until(lambda: not proxy.deadlines)


@pytest.mark.parametrize(("age", "term", "count"), [(0.0, 1, 1), (LIST_SECONDS, 1, 0), (0.0, 2, 0)])
async def test_list_of_the_earlier_service_is_inherited_while_it_holds(
    services: Services, one: Settings, two: Settings, age: float, term: int, count: int
) -> None:
    first = await services.start_working(one)
    second = services.start(two)
    await services.until_known("two")
    passing = FakePassingOn.MADE["two"]
    assert not passing.leases[-1].is_over
    route = ["a.localhost", "10.99.0.20", 8000, False, False, "10.98.0.12"]
    answer = {"term": term, "version": "a-1", "whole": True, "routes": [route], "closed": []}
    now = Moment()
    passing.list.take(json.dumps(answer).encode(), Moment(now.boot - age, now.wall - age))
    assert list(await passing.visited_hosts()) == []
    await first.stop()
    await second.until(lambda: second.works)
    assert (passing.leases[-1].is_over, passing.leases[-1].term) == (True, 1), "released"
    assert second.owned.standby is not None
    assert len(second.owned.standby.inherited) == count


async def test_lease_is_over_once_it_is_silent(services: Services, one: Settings, two: Settings) -> None:
    first = await services.start_working(one)
    second = services.start(two)
    await services.until_known("two")
    began = time.monotonic()
    await first.kill()
    leases = FakePassingOn.MADE["two"].leases
    await second.until(lambda: leases[-1].is_over)
    # A renewal may have been under way.
    assert time.monotonic() - began >= cluster_services.CLAIM_AFTER - RENEW_INTERVAL / HURRY
    assert not second.works


@pytest.mark.parametrize("in_order", [False, True])
async def test_service_that_announces_itself_no_more_uses_no_list(
    services: Services, one: Settings, two: Settings, make: Callable[[str], Settings], *, in_order: bool
) -> None:
    """The next service waits for those that announced themselves a short while ago."""
    first = await services.start_working(one)
    second = services.start(two)
    await services.until_known("two")
    new = make("new")
    await share_keys(new, new)
    (two.data_dir / "ssh_host_key").write_bytes((new.data_dir / "ssh_host_key").read_bytes())
    await services.until_known()
    await (first.stop() if in_order else first.kill())
    leases = FakePassingOn.MADE["two"].leases
    seen, until = len(leases), time.monotonic() + 2 * cluster_services.CLAIM_AFTER
    await second.until(lambda: time.monotonic() > until and len(leases) > seen + 1)
    assert not any(one.is_over for one in leases)


async def test_service_after_another_one_gives_no_address_while_lists_of_the_earlier_term_are_used(
    services: Services, one: Settings, two: Settings
) -> None:
    first = await services.start_working(one)
    assert first.owned.first_address_at == 0.0, "nobody worked before"
    await first.stop()
    first = await services.start_working(one)
    assert first.owned.first_address_at == 0.0, "nobody stood by"
    second = services.start(two)
    await services.until_known("two")
    await first.kill()
    first = await services.start_working(one)
    wait = FIRST_ADDRESS_AFTER / HURRY
    assert 0 < first.owned.first_address_at - time.monotonic() <= wait, "the other one has a list"
    await services.until_known("two")
    began = time.monotonic()
    await first.stop()
    await second.until(lambda: second.works)
    assert second.owned.first_address_at >= began + wait


async def test_service_that_cannot_write_its_lease_waits_for_the_end_of_all_lists(
    services: Services, one: Settings, two: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Standbys do not learn that it is another process than the one that told them their lists."""
    first = await services.start_working(one)
    services.start(two)
    await services.until_known("two")
    await first.kill()

    def full(*_: object) -> None:
        raise StoreUnavailable("The disk is full.")

    monkeypatch.setattr(DatabaseLeases, "take", full)
    first = await services.start_working(one)
    assert first.owned.first_address_at - time.monotonic() > (RESERVED_SECONDS - 30) / HURRY


async def test_service_does_not_wait_for_a_standby_that_was_taken_away(
    services: Services, one: Settings, two: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An announcement stays for a week; the list of a service that was killed is used no more."""
    first = await services.start_working(one)
    second = services.start(two)
    await services.until_known("two")
    with monkeypatch.context() as patch:
        patch.setattr(StoredServices, "remove", lambda *_: None)
        await second.kill()
    await first.stop()
    kept = (LIST_SECONDS + LEASE_SECONDS) / HURRY
    for age, waits in ((kept - 2, True), (kept + 1, False)):
        seen_at = f"strftime('%Y-%m-%d %H:%M:%f000', 'now', '-{age} seconds')"
        _execute(one, f"UPDATE services SET seen_at = {seen_at} WHERE data_dir = '{two.data_dir}'")
        first = await services.start_working(one)
        assert (first.owned.first_address_at > 0) is waits
        await first.stop()


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
        waited.append((time.monotonic(), time.clock_gettime(time.CLOCK_BOOTTIME)))
        return lease

    monkeypatch.setattr(standby.Standby, "wait", timed)
    first = await services.start_working(one)
    second = services.start(two)
    await services.until_known("two")
    await first.kill()
    await second.until(lambda: second.works)
    ((taken, taken_since_boot),) = waited
    assert taken - cluster.claimed_at >= cluster_services.TAKE_AFTER_CLAIM
    # The fence looks once a second, and rounds up to one.
    assert taken_since_boot >= proxy.deadlines[one.data_dir] + 2 / HURRY
    assert cluster.claimed == second.owned.instance.member
    with pytest.raises(LeaseLost):
        await first.owned.store.write(lambda uow: uow.database_lease.renew(1))


async def test_claim_that_fails_is_repeated_at_the_next_look(
    services: Services, one: Settings, two: Settings, cluster: FakeCluster
) -> None:
    """Incus stores nothing for 20 s after a member was cut off."""
    first = await services.start_working(one)
    second = services.start(two)
    await services.until_known("two")
    await first.kill()
    cluster.failing = 4
    await second.until(lambda: second.works)
    assert cluster.tried[-1] - cluster.tried[0] < cluster_services.CLAIM_AFTER * 3


async def test_standby_whose_claim_another_one_replaced_claims_again_before_it_takes_over(
    services: Services, one: Settings, two: Settings, cluster: FakeCluster
) -> None:
    first = await services.start_working(one)
    second = services.start(two)
    await services.until_known("two")
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
    first = await services.start_working(one)
    second = services.start(two)
    await services.until_known("two")
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


@pytest.mark.slow
async def test_service_that_comes_back_stands_by(services: Services, one: Settings, two: Settings) -> None:
    first = await services.start_working(one)
    second = services.start(two)
    await services.until_known("two")
    await first.stop()
    await second.until(lambda: second.works)
    back = services.start(one)
    await services.until_known("one")
    await second.stop()
    await back.until(lambda: back.works)


async def test_a_restarted_service_has_its_work_back_before_any_standby(
    services: Services, one: Settings, two: Settings, proxy: FakeProxy
) -> None:
    first = await services.start_working(one)
    second = services.start(two)
    await services.until_known("two")
    await first.kill()
    await services.start_working(one)
    assert not second.works
    assert one.data_dir not in proxy.taken_down
    await services.until_known("two")
    assert proxy.ended == []


# The database is away


def away(monkeypatch: pytest.MonkeyPatch, store: SqlStore) -> None:
    async def fail(*_: object) -> None:
        raise StoreUnavailable("The database does not answer.")

    monkeypatch.setattr(store, "write", fail)


async def test_owner_without_database_works_on_while_nobody_claims_its_work(
    services: Services, one: Settings, two: Settings, proxy: FakeProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A restart of PostgreSQL takes no preview away."""
    first = await services.start_working(one)
    second = services.start(two)
    await services.until_known("two")
    with monkeypatch.context() as patch:
        away(patch, first.owned.store)
        await second.kill()
        for _ in range(100):
            await asyncio.sleep(60 / HURRY / 100)
            assert proxy.deadlines[one.data_dir] > time.clock_gettime(time.CLOCK_BOOTTIME)
    assert not first.task.done()
    assert proxy.ended == []


async def test_owner_without_database_ends_once_another_claims_its_work(
    services: Services,
    one: Settings,
    two: Settings,
    proxy: FakeProxy,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = await services.start_working(one)
    second = services.start(two)
    await services.until_known("two")
    away(monkeypatch, first.owned.store)
    await second.until(lambda: second.works)
    with pytest.raises(LeaseLost, match="takes the cluster over"):
        await first.task
    assert proxy.is_past(one)
    assert second.owned_at >= proxy.deadlines[one.data_dir]
    # Until what the service runs has ended: it would start the previews again.
    assert proxy.ended == []
    await first.stop()
    assert proxy.ended == [one.data_dir]
    assert one.data_dir not in proxy.deadlines


async def test_renewal_that_is_late_never_sets_the_deadline_back_and_is_repeated_at_once(
    services: Services,
    one: Settings,
    two: Settings,
    proxy: FakeProxy,
    cluster: FakeCluster,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = await services.start_working(one)
    services.start(two)
    await services.until_known("two")
    cluster.failing = 10**6  # nobody claims the work
    moved: list[float] = []
    rounds: list[str] = []
    hold, write, confirm = proxy.hold, first.owned.store.write, GuardedLease._confirm
    late, held = asyncio.Event(), asyncio.Event()

    async def hold_noted(files: object, until: float) -> None:
        moved.append(until)
        await hold(files, until)

    async def write_late(work: Callable[[UnitOfWork], object]) -> object:
        if not held.is_set():
            held.set()
            await late.wait()
        return await write(work)

    async def confirm_noted(self: GuardedLease, began: float) -> None:
        rounds.append("begin")
        await confirm(self, began)
        rounds.append("end")

    monkeypatch.setattr(first.owned.store, "write", write_late)
    await first.until(held.is_set)
    monkeypatch.setattr(proxy, "hold", hold_noted)
    monkeypatch.setattr(GuardedLease, "_confirm", confirm_noted)
    # The cluster moves the deadline twice meanwhile, so beyond that of the renewal.
    await first.until(lambda: len(moved) == 2)
    late.set()
    await first.until(lambda: len(moved) >= 4)
    assert moved == sorted(moved)
    assert ("begin", "begin") in pairwise(rounds)


async def test_routes_of_an_earlier_term_go_before_the_lease_is_taken(
    services: Services, one: Settings, two: Settings, proxy: FakeProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A service that fails after it took the lease finds it its own at its next start, and trusts its routes."""
    first = await services.start_working(one)
    second = services.start(two)
    await services.until_known("two")
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


async def test_owner_that_reaches_neither_database_nor_cluster_ends(
    services: Services,
    one: Settings,
    two: Settings,
    proxy: FakeProxy,
    cluster: FakeCluster,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = await services.start_working(one)
    second = services.start(two)
    await services.until_known("two")
    away(monkeypatch, first.owned.store)
    cluster.away = True
    with pytest.raises(LeaseLost, match="Neither the database nor the cluster"):
        await first.task
    assert proxy.is_past(one)
    assert not second.works, "it has no quorum either"
    cluster.away = False
    await second.until(lambda: second.works)


@pytest.mark.slow
async def test_cluster_that_is_away_ends_no_owner_that_has_its_database(
    services: Services, one: Settings, two: Settings, proxy: FakeProxy, cluster: FakeCluster
) -> None:
    first = await services.start_working(one)
    second = services.start(two)
    await services.until_known("two")
    cluster.away = True
    await asyncio.sleep(40 / HURRY)
    assert not first.task.done()
    assert not second.works
    assert proxy.deadlines[one.data_dir] > time.clock_gettime(time.CLOCK_BOOTTIME)


@pytest.mark.slow
async def test_silence_counts_from_when_the_database_answers_the_standby_again(
    services: Services, one: Settings, two: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PostgreSQL was away for both: the owner, which is alive, has the first word."""
    first = await services.start_working(one)
    second = services.start(two)
    await services.until_known("two")
    write = SqlStore.write
    with monkeypatch.context() as patch:

        async def fail(*_: object) -> None:
            raise StoreUnavailable("The database does not answer.")

        patch.setattr(SqlStore, "write", fail)
        await asyncio.sleep(40 / HURRY)
    assert SqlStore.write is write
    await asyncio.sleep(20 / HURRY)
    assert not second.works
    assert not first.task.done()


@pytest.mark.slow
async def test_claim_is_withdrawn_when_the_owner_is_seen_again(
    services: Services, one: Settings, two: Settings, cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = await services.start_working(one)
    second = services.start(two)
    await services.until_known("two")
    own = first.owned.instance.member
    with monkeypatch.context() as patch:
        # The owner hangs, as under SIGSTOP.
        hang = asyncio.Event()
        patch.setattr(GuardedLease, "_confirm", lambda *_: hang.wait())
        await second.until(lambda: cluster.claimed != own)
    hang.set()
    await second.until(lambda: cluster.claimed == own)
    assert not second.works


@pytest.mark.parametrize("killed", [False, True])
async def test_previews_have_no_deadline_once_the_standby_has_left(
    services: Services, one: Settings, two: Settings, proxy: FakeProxy, killed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = await services.start_working(one)
    second = services.start(two)
    await services.until_known("two")
    with monkeypatch.context() as patch:
        if killed:
            patch.setattr(StoredServices, "remove", lambda *_: None)
        await second.kill()
    await services.until_known()
    await first.until(lambda: not proxy.deadlines)
    await first.stop()
    assert proxy.ended == [], "apps stay reachable while no service runs"


# Who may not stand by


async def test_service_with_other_keys_is_refused_with_the_commands_that_copy_them(
    services: Services, one: Settings, make: Callable[[str], Settings]
) -> None:
    await services.start_working(one)
    await asyncio.sleep(5 / HURRY)
    stranger = services.start(make("stranger"))
    with pytest.raises(DatabaseOwned) as refused:
        await stranger.task
    for name in ("vault.key", "ssh_host_key"):
        assert f":{one.data_dir}/{name} {stranger.settings.data_dir}/{name}" in refused.value.message
    assert not (stranger.settings.data_dir / "vault.key").exists()


async def test_service_of_another_cluster_is_refused(
    services: Services, one: Settings, two: Settings, cluster: FakeCluster
) -> None:
    first = await services.start_working(one)
    await first.until(lambda: bool(cluster.id))
    async with asyncio.timeout(30):
        while not await services.store.read(lambda uow: uow.services.list()):
            await asyncio.sleep(0.01)
    cluster.id = "elsewhere"
    with pytest.raises(DatabaseOwned, match="disks are in another place"):
        await services.start(two).task


@pytest.mark.slow
async def test_owner_that_is_no_service_of_the_cluster_is_named(
    services: Services, one: Settings, two: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(leasing, "make_membership", lambda *_: None)
        await services.start_working(one)
    with pytest.raises(DatabaseOwned, match="no service of this cluster"):
        await services.start(two).task


@pytest.mark.slow
async def test_older_version_does_not_take_a_newer_schema(
    services: Services, one: Settings, two: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    first = await services.start_working(one)
    second = services.start(two)
    await services.until_known("two")
    _execute(one, "UPDATE alembic_version SET version_num = '9999'")
    await first.stop()
    await asyncio.sleep(40 / HURRY)
    assert not second.works
    assert "upgrade this service" in caplog.text
    _execute(one, f"UPDATE alembic_version SET version_num = '{revisions()[-1]}'")
    await second.until(lambda: second.works)


async def test_standby_whose_key_differs_after_a_rotation_waits_for_the_copy(
    services: Services, one: Settings, two: Settings, make: Callable[[str], Settings], caplog: pytest.LogCaptureFixture
) -> None:
    new = make("new")
    await share_keys(new, new)
    first = await services.start_working(one)
    second = services.start(two)
    await services.until_known("two")
    (one.data_dir / "vault.key").write_bytes((new.data_dir / "vault.key").read_bytes())
    await second.until(lambda: "its keys are not those of" in caplog.text)
    assert f"/vault.key {two.data_dir}/vault.key" in caplog.text
    await services.until_known()
    (two.data_dir / "vault.key").write_bytes((new.data_dir / "vault.key").read_bytes())
    await services.until_known("two")
    assert not first.task.done()
    assert not second.task.done()


@pytest.mark.parametrize("name", ["vault.key", "ssh_host_key"])
async def test_owner_whose_key_cannot_be_read_goes_on_and_keeps_its_lease(
    name: str, services: Services, one: Settings, two: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    first = await services.start_working(one)
    second = services.start(two)
    await services.until_known("two")
    (one.data_dir / name).write_bytes(b"")
    await first.until(lambda: "service not announced to the cluster" in caplog.text)
    assert name in caplog.text
    # Without renewals the standby would have claimed the work and taken it by then.
    await asyncio.sleep((cluster_services.CLAIM_AFTER + cluster_services.TAKE_AFTER_CLAIM) * 1.5)
    assert not second.works
    assert not first.task.done()
    assert "database lease not renewed" not in caplog.text
    assert await services.known() == ["two"]


async def test_standby_whose_key_is_being_copied_waits_for_it(
    services: Services, one: Settings, two: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    await services.start_working(one)
    second = services.start(two)
    await services.until_known("two")
    whole = (two.data_dir / "vault.key").read_bytes()
    (two.data_dir / "vault.key").write_bytes(b"")
    await second.until(lambda: "A key of this service cannot be read" in caplog.text)
    await services.until_known()
    (two.data_dir / "vault.key").write_bytes(whole)
    await services.until_known("two")
    assert not second.task.done()


# What it says meanwhile


async def test_standby_passes_its_ports_on_to_the_owner_and_frees_them_for_itself(
    services: Services, one: Settings, two: Settings
) -> None:
    first = await services.start_working(one)
    second = services.start(two)
    await services.until_known("two")
    own = "10.98.0.11:8083"
    await second.until(lambda: ("follow", own) in FakePassingOn.steps("two"))
    await first.stop()
    await second.until(lambda: second.works)
    assert ("close", None) not in FakePassingOn.steps("two"), "its ports are its own until the API listens"
    await second.owned.end_standby()
    assert FakePassingOn.steps("two")[-1] == ("close", own)
    await second.stop()
    assert FakePassingOn.steps("two")[-1] == ("close", None)


async def test_standby_that_ends_frees_its_ports(services: Services, one: Settings, two: Settings) -> None:
    await services.start_working(one)
    second = services.start(two)
    await services.until_known("two")
    await second.stop()
    assert FakePassingOn.steps("two")[-1] == ("close", None)


@pytest.mark.slow
async def test_doctor_names_the_standbys(
    services: Services, one: Settings, two: Settings, cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The look at the schema holds the standby's announcements up for a moment.
    monkeypatch.setattr(cluster_services, "ALIVE_SECONDS", 15.0)
    first = await services.start_working(one)
    second = services.start(two)
    await services.until_known("two")
    (_, standby_line) = await describe_database(one)
    assert "takes over if the owner ends, passes calls and visitors on" in standby_line
    # Nobody takes over meanwhile.
    cluster.away = True
    await first.kill()
    await services.store.write(lambda uow: uow.services.set_known([], 1))
    (_, standby_line) = await describe_database(two)
    assert "would not take over: the service that works has not noted it" in standby_line
    assert not second.works
