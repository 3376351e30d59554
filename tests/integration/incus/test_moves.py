"""Disks and layers between two real members: moved and copied, with their limit."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tests.contract.engine import apps
from tests.engines import make_spec, settings_in, until_listening
from tests.incus import IncusCluster, prepared_incus, running_cluster

from builderd.core.errors import InvalidState
from builderd.core.ids import DiskId, SandboxId, new_id
from builderd.dependencies.model import LAYER, BuildStep, Cache, LayerPlan
from builderd.engine.incus.disks import volume_of
from builderd.engine.incus.engine import IncusEngine
from builderd.engine.incus.provider import Administration
from builderd.files.model import Condition

pytestmark = [pytest.mark.root, pytest.mark.slow]

KEY = "e" * 64


@pytest.fixture(scope="module")
def pair() -> Iterator[IncusCluster]:
    with running_cluster(2) as cluster:
        yield cluster


async def write(engine: IncusEngine, disk: DiskId, path: str, content: bytes) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield content

    await engine.files.write_file(disk, path, pieces(), condition=Condition())


async def content_of(engine: IncusEngine, disk: DiskId, path: str) -> bytes:
    async with engine.files.open_file(disk, path) as opened:
        return b"".join([piece async for piece in opened.read(0, opened.entry.size)])


async def test_disk_moves_to_another_member_with_its_files_and_its_limit(pair: IncusCluster, tmp_path: Path) -> None:
    async with prepared_incus(pair, tmp_path) as engine:
        here, administration = engine._here, Administration(pair.options())
        await administration._set_leaving("node2", leaving=True)
        await here.members.look()
        spec = await make_spec(engine, apps.SERVER)
        assert await here.disks.member(spec.disk) == "node1"
        await engine.sandboxes.start(spec)
        await until_listening(engine, spec.id)
        await write(engine, spec.disk, "kept", b"first")
        await administration._set_leaving("node2", leaving=False)
        await administration._set_leaving("node1", leaving=True)
        await here.members.look()
        before = await engine.disks.disk(spec.disk)
        assert before
        assert before.is_leaving
        with pytest.raises(InvalidState, match="stop it first"):
            await engine.move_disk(spec.disk)
        await engine.sandboxes.stop(spec.id, 1)
        # Its ended instance is kept for its logs.
        assert await engine.move_disk(spec.disk) == "node2"
        assert await engine.move_disk(spec.disk) == "node2"
        assert await engine.disks.disk(spec.disk) == replace(before, is_leaving=False)
        assert await here.volumes.places(volume_of(spec.disk)) == ["node2"]
        assert await content_of(engine, spec.disk, "kept") == b"first"
        with pytest.raises(Exception, match="fit"):
            await write(engine, spec.disk, "large", bytes(before.size_bytes + 1_000_000))
        await engine.sandboxes.remove(spec.id)
        again = replace(spec, id=SandboxId(new_id().replace("-", "")))
        await engine.sandboxes.start(again)
        await until_listening(engine, again.id)
        await engine.sandboxes.stop(again.id, 1)
        await engine.sandboxes.remove(again.id)
        await engine.disks.delete_disk(spec.disk)
        await administration._set_leaving("node1", leaving=False)
        await administration.close()


async def test_layer_is_copied_to_the_member_that_needs_it(pair: IncusCluster, tmp_path: Path) -> None:
    engine = IncusEngine(settings_in(tmp_path), pair.options())
    with pair.network_of():
        await engine.prepare(lambda line: None)
        try:
            script = f"mkdir -p {LAYER}/venv && echo it >{LAYER}/venv/mark"
            step = BuildStep("make", ("/bin/sh", "-c", script), network=False, cache=Cache.NONE)
            outcome = await engine.layers.build_layer(
                LayerPlan(KEY, {}, (step,), runs_foreign_code=False), lambda line: None
            )
            assert outcome.exit_code == 0, outcome.output
            here = engine._here
            volumes = await asyncio.gather(*(here.layers.volume(KEY, member) for member in ("node1", "node2")))
            assert volumes[0] == volumes[1]
            assert set(await here.volumes.places(volumes[0][0])) == {"node1", "node2"}
            assert await engine.layers.collect_layers([KEY], 0) == [KEY]
        finally:
            await engine.down()
            await engine.close()
