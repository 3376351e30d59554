"""A service without its database works on while nobody claims its work; a standby without it claims nothing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from itertools import pairwise

import pytest
from tests.unit.bootstrap.fake_cluster import FakeCluster
from tests.unit.bootstrap.standby.services import (
    HURRY,
    FakeProxy,
    Services,
)

from builderd.bootstrap.standby import GuardedLease
from builderd.core.errors import StoreUnavailable
from builderd.core.members import LeaseLost
from builderd.database.unit_of_work import Store, UnitOfWork
from builderd.settings import Settings


def away(monkeypatch: pytest.MonkeyPatch, store: Store) -> None:
    async def fail(*_: object) -> None:
        raise StoreUnavailable("The database does not answer.")

    monkeypatch.setattr(store, "write", fail)


async def test_owner_without_database_works_on_while_nobody_claims_its_work(
    services: Services, one: Settings, two: Settings, proxy: FakeProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A restart of PostgreSQL takes no preview away."""
    first, second = await services.start_both(one, two)
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
    first, second = await services.start_both(one, two)
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
    first, _ = await services.start_both(one, two)
    cluster.failing = 10**6  # nobody claims the work
    moved: list[float] = []
    rounds: list[float] = []
    hold, write, confirm = proxy.set_deadline, first.owned.store.write, GuardedLease._confirm
    late, held = asyncio.Event(), asyncio.Event()

    async def hold_noted(files: object, until: float) -> None:
        moved.append(until)
        await hold(files, until)

    async def write_late(work: Callable[[UnitOfWork], object]) -> object:
        if not held.is_set():
            held.set()
            await late.wait()
        return await write(work)

    async def confirm_noted(self: GuardedLease, began: float) -> float:
        rounds.append(began)
        return await confirm(self, began)

    monkeypatch.setattr(first.owned.store, "write", write_late)
    await first.until(held.is_set)
    monkeypatch.setattr(proxy, "set_deadline", hold_noted)
    monkeypatch.setattr(GuardedLease, "_confirm", confirm_noted)
    # The cluster moves the deadline twice meanwhile, so beyond that of the renewal.
    await first.until(lambda: len(moved) == 2)
    late.set()
    await first.until(lambda: len(moved) >= 4)
    assert moved == sorted(moved)
    assert min(later - earlier for earlier, later in pairwise(rounds)) < 3 / HURRY


async def test_owner_that_reaches_neither_database_nor_cluster_ends(
    services: Services,
    one: Settings,
    two: Settings,
    proxy: FakeProxy,
    cluster: FakeCluster,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first, second = await services.start_both(one, two)
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
    first, second = await services.start_both(one, two)
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
    first, second = await services.start_both(one, two)
    write = Store.write
    with monkeypatch.context() as patch:

        async def fail(*_: object) -> None:
            raise StoreUnavailable("The database does not answer.")

        patch.setattr(Store, "write", fail)
        await asyncio.sleep(40 / HURRY)
    assert Store.write is write
    await asyncio.sleep(20 / HURRY)
    assert not second.works
    assert not first.task.done()


@pytest.mark.slow
async def test_claim_is_withdrawn_when_the_owner_is_seen_again(
    services: Services, one: Settings, two: Settings, cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = await services.start_both(one, two)
    own = first.owned.instance.member
    with monkeypatch.context() as patch:
        # The owner hangs, as under SIGSTOP.
        hang = asyncio.Event()
        patch.setattr(GuardedLease, "_confirm", lambda *_: hang.wait())
        await second.until(lambda: cluster.claimed != own)
    hang.set()
    await second.until(lambda: cluster.claimed == own)
    assert not second.works
