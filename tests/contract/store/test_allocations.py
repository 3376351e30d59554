"""Numbers of builders and their disks, summed by tenant and for all tenants, as they are claimed and released."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import replace
from functools import partial

from tests.contract.store.samples import TENANT, add, make_builder, make_version, save
from tests.stores import open_store

from builderd.builders.model import Builder, Candidate, Desired
from builderd.builders.store import BuilderQuery
from builderd.core.resources import Allocation, Resources
from builderd.database.unit_of_work import Store, UnitOfWork

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
