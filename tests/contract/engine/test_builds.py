"""Builds of versions, as every engine makes them: on a copy of the files, kept as a layer, written onto disks."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import pytest
from tests.fakes.engine import FakeEngine

from builderd.code.model import Bundle, BundleFile, make_bundle
from builderd.core.errors import NotFound
from builderd.core.ids import DiskId, TenantId, new_id
from builderd.core.resources import GB
from builderd.dependencies.model import AppBuild, BuildStep, Cache, LayerPlan
from builderd.engine.port import Engine

FIRST = "mkdir dist && cat main.txt > dist/page && echo old > dist/old && echo changed > kept.txt"
SECOND = "mkdir dist && echo second > dist/page"
RESULTS = {
    FIRST: {"dist/page": b"hello\n", "dist/old": b"old\n", "kept.txt": b"changed\n"},
    SECOND: {"dist/page": b"second\n"},
}
BUNDLE = make_bundle([BundleFile("main.txt", b"hello\n"), BundleFile("kept.txt", b"kept\n")])


def plan_of(bundle: Bundle, command: str) -> LayerPlan:
    step = BuildStep("Building", ("/bin/sh", "-ec", command), network=False, cache=Cache.NONE)
    key = hashlib.sha256(f"{new_id()}{command}".encode()).hexdigest()
    return LayerPlan(key, {}, (step,), True, tenant=TenantId("one"), app=AppBuild(bundle, None))


async def build(engine: Engine, command: str) -> str:
    if isinstance(engine, FakeEngine):
        engine.build_results.update(RESULTS)
    plan = plan_of(BUNDLE, command)
    outcome = await engine.layers.build_layer(plan, lambda line: None)
    assert outcome.ok, outcome.output
    assert (await engine.layers.build_layer(plan, lambda line: None)).reused
    return plan.key


async def content(engine: Engine, disk: DiskId) -> dict[str, bytes]:
    found = {}
    for path in ("main.txt", "kept.txt", "dist/page", "dist/old", "own.txt"):
        try:
            async with engine.files.open_file(disk, path) as file:
                found[path] = b"".join([piece async for piece in file.read(0, file.entry.size)])
        except NotFound:
            continue
    return found


async def test_result_of_a_build_is_written_over_the_files_and_replaced_with_the_next(engine: Engine) -> None:
    disk, clone = DiskId(new_id()), DiskId(new_id())
    first, second = await build(engine, FIRST), await build(engine, SECOND)
    await engine.disks.create_disk(disk, GB)
    await engine.disks.put_bundle(disk, BUNDLE, None, first)
    assert await content(engine, disk) == {"main.txt": b"hello\n", **RESULTS[FIRST]}
    await engine.disks.clone_disk(disk, clone, GB)
    for each in (disk, clone):
        report = await engine.disks.disk(each)
        assert report is not None
        assert (report.bundle_hash, report.build_key) == (BUNDLE.hash, first)

    await engine.disks.put_bundle(clone, BUNDLE, BUNDLE, second)
    assert await content(engine, clone) == {"main.txt": b"hello\n", "kept.txt": b"kept\n", **RESULTS[SECOND]}
    await engine.disks.put_bundle(clone, BUNDLE, BUNDLE)
    report = await engine.disks.disk(clone)
    assert report is not None
    assert report.build_key == ""
    assert await content(engine, clone) == {"main.txt": b"hello\n", "kept.txt": b"kept\n"}


async def test_result_stays_on_the_disk_when_its_layer_is_removed(engine: Engine) -> None:
    disk, key = DiskId(new_id()), await build(engine, SECOND)
    await engine.disks.create_disk(disk, GB)
    await engine.disks.put_bundle(disk, BUNDLE, None, key)
    assert list(await engine.layers.collect_layers([key], 0)) == [key]
    assert not await engine.layers.has_layer(key)
    report = await engine.disks.disk(disk)
    assert report is not None
    assert report.build_key == key
    with pytest.raises(NotFound):
        await engine.disks.put_bundle(disk, BUNDLE, BUNDLE, key)


async def test_layer_of_a_build_counts_for_its_tenant(engine: Engine) -> None:
    key = await build(engine, SECOND)
    stored = (await engine.layers.stored_layers()).layers[key]
    assert stored.tenant == TenantId("one")
    assert stored.bytes > 0


async def test_failed_build_leaves_no_layer(engine: Engine) -> None:
    plan = replace(plan_of(BUNDLE, "echo no >&2; exit 3"))
    if isinstance(engine, FakeEngine):
        return
    outcome = await engine.layers.build_layer(plan, lambda line: None)
    assert (outcome.exit_code, outcome.output) == (3, ("no",))
    assert not await engine.layers.has_layer(plan.key)
