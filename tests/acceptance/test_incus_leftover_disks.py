"""Copies that a killed service left on a cluster are removed, those of a member that is away once it has returned."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from dataclasses import replace

import pytest
from tests.application import World, fake_world
from tests.incus import IncusCluster, prepared_incus, running_cluster

from builderd.adapters.engines.incus.engine import IncusEngine
from builderd.domain.bundles import BundleFile, make_bundle
from builderd.domain.errors import EngineUnavailable
from builderd.domain.ids import DiskId, new_id
from builderd.reconciler.jobs.leftover_disks import UNNAMED_FOR, LeftoverDisks
from builderd.services import builders

pytestmark = [pytest.mark.root, pytest.mark.slow]

BUNDLE = make_bundle([BundleFile("main.py", b"print()\n")])
SIZE = 1 << 30


@pytest.fixture(scope="module")
def cluster() -> Iterator[IncusCluster]:
    with running_cluster(3) as cluster:
        cluster.run("incus", "1", "config", "set", "cluster.offline_threshold=11")
        yield cluster


@pytest.fixture
async def engine(cluster: IncusCluster, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[IncusEngine]:
    async with prepared_incus(cluster, tmp_path_factory.mktemp("l")) as engine:
        yield engine


async def until_members(engine: IncusEngine, away: int) -> None:
    async with asyncio.timeout(300):
        while sum(one.away_since is not None for one in await engine.members()) != away:
            await asyncio.sleep(0.5)


async def look_an_hour_later(world: World, sweep: LeftoverDisks) -> None:
    await sweep.check()
    world.clock.move(UNNAMED_FOR.total_seconds())
    await sweep.check()


async def test_copies_and_blank_volumes_go_and_disks_with_files_of_their_own_stay(
    cluster: IncusCluster, engine: IncusEngine
) -> None:
    async with fake_world() as world:
        application = replace(world.application, engine=engine)
        sweep = LeftoverDisks(application)
        builder = await world.ask()
        own, copy, written, blank, moving, elsewhere = (builder.disk, *(DiskId(new_id()) for _ in range(5)))
        await engine.create_disk(own, SIZE)
        await engine.put_bundle(own, BUNDLE)
        await engine.clone_disk(own, copy, SIZE)
        await engine.clone_disk(own, written, SIZE)
        await engine.put_bundle(written, BUNDLE)
        await engine.create_disk(blank, SIZE)
        await engine.stage_disk(own, moving, None)
        assert await engine.disk(moving) is None
        found = await engine.disk(copy)
        assert found is not None
        assert (found.copy_of, found.is_blank) == (own, False)

        await look_an_hour_later(world, sweep)
        assert set(await engine.disk_members()) == {own, written, moving}

        # Completed, and the service was killed before a record named it; then its member was lost.
        await engine.clone_disk(own, moving, SIZE)
        await engine.create_disk(elsewhere, SIZE)
        place = (await engine.disk_members())[moving]
        assert place != "node1", "the network of the first member is the test's"
        cluster.run("kill", place[-1])
        await until_members(engine, 1)
        await look_an_hour_later(world, sweep)
        assert moving in await engine.disk_members()
        cluster.run("start", place[-1])
        await until_members(engine, 0)
        async with asyncio.timeout(300):
            while moving in await engine.disk_members():
                with suppress(EngineUnavailable):
                    await sweep.check()
                await asyncio.sleep(1)
        assert set(await engine.disk_members()) - {elsewhere} == {own, written}

        # A moved builder has its copy for good, also where an older database does not know of it.
        moved = DiskId(new_id())
        await engine.clone_disk(own, moved, SIZE)
        await engine.adopt_copy(moved)
        await look_an_hour_later(world, sweep)
        assert moved in await engine.disk_members()
        for disk in (own, written, moved, elsewhere):
            await engine.delete_disk(disk)
        await world.want(builders.delete, builder)
