"""Disks and layers between two real members: copied, brought up to date, with their limit."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from tests.contract.engine import apps
from tests.engines import make_spec, settings_in, until_listening
from tests.incus import IncusCluster, prepared_incus, running_cluster

from builderd.adapters.engines.incus.administration import Administration
from builderd.adapters.engines.incus.engine import IncusEngine
from builderd.domain.files import Condition
from builderd.domain.ids import DiskId, new_id
from builderd.domain.layers import LAYER, BuildStep, Cache, LayerPlan
from builderd.domain.resources import GB

pytestmark = [pytest.mark.root, pytest.mark.slow]

KEY = "e" * 64


@pytest.fixture(scope="module")
def pair() -> Iterator[IncusCluster]:
    with running_cluster(2) as cluster:
        yield cluster


async def write(engine: IncusEngine, disk: DiskId, path: str, content: bytes) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield content

    await engine.write_file(disk, path, pieces(), condition=Condition())


async def content_of(engine: IncusEngine, disk: DiskId, path: str) -> bytes:
    async with engine.open_file(disk, path) as opened:
        return b"".join([piece async for piece in opened.read(0, opened.entry.size)])


async def names(engine: IncusEngine, disk: DiskId) -> set[str]:
    return {entry.name for entry in (await engine.list_files(disk, "", 0, 100)).entries}


async def test_disk_moves_with_what_changed_since_it_was_copied(pair: IncusCluster, tmp_path: Path) -> None:
    async with prepared_incus(pair, tmp_path) as engine:
        here, administration = engine._here, Administration(pair.options())
        await administration._set_leaving("node2", leaving=True)
        spec = await make_spec(engine, apps.SERVER)
        assert await here.disks.member(spec.disk) == "node1"
        await engine.start(spec)
        await until_listening(engine, spec.id)
        for name in ("kept", "changed", "removed"):
            await write(engine, spec.disk, name, b"first")
        await administration._set_leaving("node2", leaving=False)
        await administration._set_leaving("node1", leaving=True)
        target = DiskId(new_id())
        # While the app runs.
        assert await engine.stage_disk(spec.disk, target, None) == "node2"
        assert await engine.disk(target) is None
        await write(engine, spec.disk, "changed", b"second")
        await write(engine, spec.disk, "added", b"new")
        await engine.delete_file(spec.disk, "removed", Condition())
        await engine.stop(spec.id, 1)
        await engine.clone_disk(spec.disk, target, GB)
        before, after = await engine.disk(spec.disk), await engine.disk(target)
        assert before
        assert after
        assert (after.bundle_hash, after.size_bytes) == (before.bundle_hash, before.size_bytes)
        assert await here.disks.member(target) == "node2"
        assert await names(engine, target) == await names(engine, spec.disk)
        assert await content_of(engine, target, "changed") == b"second"
        assert await content_of(engine, target, "kept") == b"first"
        with pytest.raises(Exception, match="is being moved"):
            await write(engine, spec.disk, "late", b"lost")
        await engine.remove(spec.id)
        await engine.delete_disk(spec.disk)
        await write(engine, target, "late", b"kept")
        with pytest.raises(Exception, match="fit"):
            await write(engine, target, "large", bytes(after.size_bytes + 1_000_000))
        await engine.delete_disk(target)
        await administration._set_leaving("node1", leaving=False)
        await administration.close()


async def test_layer_is_copied_to_the_member_that_needs_it(pair: IncusCluster, tmp_path: Path) -> None:
    engine = IncusEngine(settings_in(tmp_path), pair.options())
    with pair.network_of():
        await engine.prepare(lambda line: None)
        try:
            script = f"mkdir -p {LAYER}/venv && echo it >{LAYER}/venv/mark"
            step = BuildStep("make", ("/bin/sh", "-c", script), network=False, cache=Cache.NONE)
            outcome = await engine.build_layer(LayerPlan(KEY, {}, (step,), runs_foreign_code=False), lambda line: None)
            assert outcome.exit_code == 0, outcome.output
            here = engine._here
            volumes = await asyncio.gather(*(here.layers.volume(KEY, member) for member in ("node1", "node2")))
            assert volumes[0] == volumes[1]
            assert set(await here.volumes.places(volumes[0][0])) == {"node1", "node2"}
            assert await engine.collect_layers([KEY], 0) == [KEY]
        finally:
            await engine.down()
            await engine.close()
