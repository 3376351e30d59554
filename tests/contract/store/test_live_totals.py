"""Number and disk of live builders are those of the builders, whatever changed them, and demand is admitted by them."""

from __future__ import annotations

import asyncio
import logging
import random
import threading
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from sqlalchemy import select, text, update
from tests.contract.store.samples import NOW, OTHER_TENANT, TENANT, add, make_builder, make_version, save
from tests.stores import open_store

from builderd.domain.builders import Builder, Candidate, Desired
from builderd.domain.database_lease import Instance
from builderd.domain.ids import BuilderId, TenantId
from builderd.domain.resources import Allocation, Resources
from builderd.domain.versions import Version
from builderd.store import Store, UnitOfWork
from builderd.store.builders import BuilderQuery
from builderd.store.tables import LIVE, builders, tenants

#: Sizes whose sum in binary fractions drifts when they are added and subtracted.
SIZES = (0.1, 0.2, 0.3, 1.1, 3, 7.7, 1 / 3, 100_000.1, 1e-9)
HERE = Instance("host", "host", "/data", "here", "boot")


class Undone(Exception):
    """Rolls a transaction back."""


def sized(builder: Builder, disk: float, number: int = 1) -> Version:
    version = make_version(builder.id, number=number)
    return replace(version, settings=replace(version.settings, resources=Resources(1, 1, disk)))


def create(uow: UnitOfWork, disk: float, **changes: Any) -> Builder:
    builder = make_builder(**changes)
    uow.builders.add(builder)
    uow.versions.add(sized(builder, disk))
    return builder


def locked(uow: UnitOfWork, builder: BuilderId) -> Builder:
    found = uow.builders.get(builder, lock=True)
    assert found is not None
    return found


def drop(uow: UnitOfWork, builder: BuilderId) -> None:
    uow.builders.save(replace(locked(uow, builder), desired=Desired.DELETED))


def changed(uow: UnitOfWork, chance: random.Random, builder: Builder) -> Builder:
    """Return a locked builder with one change, as it is to be saved."""
    match chance.randrange(4):
        case 0:
            return replace(builder, desired=Desired.DELETED)
        case 1:
            latest = max(version.number for version in uow.versions.list(builder.id)) + 1
            uow.versions.add(sized(builder, chance.choice(SIZES), latest))
            return replace(builder, version=latest)
        case 2:
            return replace(builder, disk_released_at=None if builder.disk_released_at else NOW)
        case _:
            return replace(builder, desired=Desired.STOPPED)


def stored(uow: Any) -> tuple[dict[TenantId, tuple[int, int]], dict[TenantId, tuple[int, int]]]:
    """Return number and disk, in billionths of a GB, as tenants' rows keep them, and as those of builders are."""
    connection = uow.tenants._connection
    kept = {row.id: (row.live_builders, row.live_disk) for row in connection.execute(select(tenants))}
    counted: dict[TenantId, tuple[int, int]] = dict.fromkeys(kept, (0, 0))
    for row in connection.execute(select(builders.c.tenant_id, builders.c.reserved_disk).where(text(LIVE))):
        number, disk = counted[row.tenant_id]
        counted[row.tenant_id] = number + 1, disk + round(row.reserved_disk * 1e9)
    return kept, counted


def falsify(uow: Any) -> None:
    uow.tenants._connection.execute(update(tenants).values(live_builders=9, live_disk=2**62))


async def assert_exact(store: Store) -> None:
    kept, counted = await store.read(stored)
    assert kept == counted


@pytest.mark.parametrize("seed", range(2))
async def test_totals_are_exact_after_any_changes(store: Store, seed: int) -> None:
    await add(store, OTHER_TENANT)
    chance, ids, number = random.Random(seed), list[BuilderId](), iter(range(1_000))

    def change(uow: UnitOfWork, fails: bool) -> list[BuilderId]:
        made: list[BuilderId] = []
        for _ in range(chance.randint(1, 3)):
            if not ids or chance.random() < 0.4:
                owner = chance.choice([TENANT, OTHER_TENANT]).id
                made.append(create(uow, chance.choice(SIZES), name=f"app-{next(number)}", tenant_id=owner).id)
            else:
                uow.builders.save(changed(uow, chance, locked(uow, chance.choice(ids))))
        before = uow.builders.allocated()
        assert before == uow.builders.allocated(), "a look changes nothing"
        if fails:
            raise Undone
        return made

    for _ in range(40):
        fails = chance.random() < 0.2
        try:
            ids += await store.write(partial(change, fails=fails))
        except Undone:
            assert fails
        await assert_exact(store)


async def test_a_transaction_sees_its_own_changes_and_no_others_do(store: Store) -> None:
    failed = await store.write(partial(create, disk=3))

    def replace_failed(uow: UnitOfWork) -> None:
        drop(uow, failed.id)
        assert (uow.builders.allocated().builders, uow.builders.allocated().disk) == (0, 0)
        create(uow, 5)
        for found in (uow.builders.allocated(), uow.builders.allocated(TENANT.id)):
            assert (found.builders, found.disk) == (1, 5)
        assert uow.builders.allocated(OTHER_TENANT.id).disk == 0
        raise Undone

    with pytest.raises(Undone):
        await store.write(replace_failed)
    assert (await store.read(lambda uow: uow.builders.allocated())).disk == 3


async def test_concurrent_changes_of_one_tenant_lose_none(shared_url: str) -> None:
    """Two services at once, which a lease forbids, with a third of their transactions rolled back."""

    def change(uow: UnitOfWork, number: int) -> BuilderId:
        builder = create(uow, SIZES[number % len(SIZES)], name=f"app-{number}")
        if number % 3 == 0:
            raise Undone
        return builder.id

    async with open_store(shared_url) as one, open_store(shared_url) as other:
        await add(one, TENANT)
        stores = [one, other]
        made = await asyncio.gather(
            *(stores[n % 2].write(partial(change, number=n)) for n in range(24)), return_exceptions=True
        )
        ids = [found for found in made if isinstance(found, str)]
        assert len(ids) == 16
        await asyncio.gather(
            *(stores[n % 2].write(partial(drop, builder=BuilderId(it))) for n, it in enumerate(ids[::2])),
            *(stores[n % 2].write(partial(change, number=100 + n)) for n in range(8)),
            return_exceptions=True,
        )
        await assert_exact(one)
        kept, _ = await one.read(stored)
        assert kept[TENANT.id][0] == 16 - 8 + 6


async def test_take_over_corrects_totals_and_says_so(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    await add(store, OTHER_TENANT)
    await store.write(partial(create, disk=7.7))
    adopt: Callable[[UnitOfWork], None] = lambda uow: uow.database_lease.adopt(HERE)  # noqa: E731

    with caplog.at_level(logging.WARNING):
        await store.write(adopt)
        assert not caplog.records
        await store.write(falsify)
        await store.write(adopt)
    await assert_exact(store)
    assert [record.getMessage() for record in caplog.records] == [
        f"totals of a tenant corrected tenant={TENANT.id} builders=-8 disk_units={7_700_000_000 - 2**62}",
        f"totals of a tenant corrected tenant={OTHER_TENANT.id} builders=-9 disk_units={-(2**62)}",
    ]


#: One vCPU each.
ROOM = 3
ASKING = 8


async def builder_of(store: Store, resources: Resources, **changes: object) -> Builder:
    builder = make_builder(**changes)
    version = make_version(builder.id)
    await add(store, builder, replace(version, settings=replace(version.settings, resources=resources)))
    return builder


async def test_running_builder_counts_fully_and_stopped_one_by_its_disk(store: Store) -> None:
    await builder_of(store, Resources(0.25, 0.5, 3))
    await builder_of(store, Resources(2, 4, 10), desired=Desired.STOPPED)
    await builder_of(store, Resources(8, 16, 100), desired=Desired.DELETED)
    assert await store.read(lambda uow: uow.builders.allocated(TENANT.id)) == Allocation(2, 1, 0.25, 0.5, 13)
    assert await store.read(lambda uow: uow.builders.allocated_to_running(TENANT.id)) == Allocation(0, 1, 0.25, 0.5)


async def test_greater_of_serving_and_candidate_version_counts(store: Store) -> None:
    builder = await builder_of(store, Resources(1, 8, 5))
    other = make_version(builder.id, number=2)
    await add(store, replace(other, settings=replace(other.settings, resources=Resources(4, 4, 3))))
    await save(store, replace(builder, candidate=Candidate(2)))
    assert await store.read(lambda uow: uow.builders.allocated()) == Allocation(1, 1, 4, 8, 5)


async def test_candidate_of_a_stopped_builder_counts_as_running(store: Store) -> None:
    builder = await builder_of(store, Resources(8, 8, 5), desired=Desired.STOPPED)
    other = make_version(builder.id, number=2)
    await add(store, replace(other, settings=replace(other.settings, resources=Resources(4, 2, 10))))
    await save(store, replace(builder, candidate=Candidate(2)))
    assert await store.read(lambda uow: uow.builders.allocated()) == Allocation(1, 1, 4, 2, 10)
    assert await store.read(lambda uow: uow.builders.allocated_to_running()) == Allocation(0, 1, 4, 2)


def take(uow: UnitOfWork, number: int) -> bool:
    """One vCPU, if there is one left."""
    uow.builders.lock_demand()
    if uow.builders.allocated().cpu + 1 > ROOM:
        return False
    builder = make_builder(name=f"app-{number}")
    uow.builders.add(builder)
    uow.versions.add(make_version(builder.id))
    return True


async def test_concurrent_admissions_do_not_exceed_the_limit(shared_url: str) -> None:
    async with open_store(shared_url) as one, open_store(shared_url) as other:
        await add(one, TENANT)
        stores = [one, other] * (ASKING // 2)
        taken = await asyncio.gather(*(s.write(partial(take, number=n)) for n, s in enumerate(stores)))
        assert sum(taken) == ROOM
        assert (await one.read(lambda uow: uow.builders.allocated())).running_builders == ROOM


async def test_creates_of_one_tenant_do_not_deadlock_over_its_number_of_builders(shared_url: str) -> None:
    """One replaces a failed builder, which it deletes before it is admitted; the other is admitted already."""
    # SQLite has one writer: there the second begins after the first.
    both = threading.Barrier(2 if shared_url.startswith("postgresql") else 1, timeout=30)
    runs: list[str] = []

    def replace_failed(uow: UnitOfWork) -> None:
        runs.append("replace")
        found = uow.builders.get(failed.id, lock=True)
        assert found is not None
        uow.builders.save(replace(found, desired=Desired.DELETED))
        if len(runs) <= 2:
            both.wait()
        take(uow, 1)

    def create(uow: UnitOfWork) -> None:
        runs.append("create")
        uow.builders.lock_demand()
        if len(runs) <= 2:
            both.wait()
        take(uow, 2)

    async with open_store(shared_url) as store:
        await add(store, TENANT)
        failed = await builder_of(store, Resources(1, 1, 3))
        await asyncio.gather(store.write(replace_failed), store.write(create))
        assert sorted(runs) == ["create", "replace"]
        total = await store.read(lambda uow: uow.builder_lists.count(TENANT.id, BuilderQuery()))
        assert total == (await store.read(lambda uow: uow.builders.allocated())).builders == 2
