"""A tenant whose builds fill the shared download cache, and stay in it, does not stop the builds of others."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.integration.oci.stores import open_store
from tests.integration.oci.test_layers import KEY, OTHER, StandIn, install, is_tidy, plan, step

from builderd.dependencies.model import CACHE, Cache
from builderd.engine.oci.storage.layers import BuildExit, BuildRun, Layers, Output
from builderd.engine.oci.storage.store import Store

pytestmark = pytest.mark.root

MB = 1 << 20
SIZE = 40 * MB


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(tmp_path) as store:
        yield store


class Runner(StandIn):
    """Runs each build until ``gate`` is set; the victim's needs half of the cache."""

    async def run_build(self, run: BuildRun, output: Output) -> BuildExit:
        self.runs.append(run)
        self.started.set()
        await self.gate.wait()
        seen = {bind.target: bind.source for bind in run.binds}
        if "victim" in run.argv:
            write(seen[CACHE] / "mine", SIZE // 2)
        return BuildExit(install(seen))


def write(file: Path, size: int) -> None:
    with file.open("wb") as out:
        for _ in range(size // MB):
            out.write(os.urandom(MB))
        os.fsync(out.fileno())


@pytest.mark.parametrize("cache", [Cache.SHARED, Cache.SCRATCH])
async def test_full_cache_in_use_does_not_block_builds_of_others(store: Store, cache: Cache) -> None:
    runner = Runner()
    runner.gate.clear()
    layers = Layers(store, runner, {})
    layers.open()
    layers._cache.open(SIZE)
    culprit = asyncio.create_task(layers.build_layer(plan(KEY, step(cache)), print))
    await runner.started.wait()
    write(store.root / "cache/download", SIZE * 3 // 4)
    runner.started.clear()
    victim = asyncio.create_task(layers.build_layer(plan(OTHER, step(Cache.SHARED, "victim")), print))
    async with asyncio.timeout(20):
        await runner.started.wait()
        runner.gate.set()
        assert (await victim).ok
        assert (await culprit).ok
    assert is_tidy(store)
