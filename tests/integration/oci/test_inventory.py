"""The store's inventory can be read by another process while a service uses it."""

from __future__ import annotations

import asyncio
import secrets

import pytest
from tests.contract.engine import apps
from tests.engines import make_spec

from builderd.dependencies.model import LAYER, BuildStep, Cache, LayerPlan
from builderd.engine.oci import provider
from builderd.engine.oci.engine.engine import OciEngine
from builderd.engine.port import EngineOptions

pytestmark = pytest.mark.root


async def test_layers_disks_and_bases_are_seen_with_their_sizes_and_uses(
    engine: OciEngine, settings: EngineOptions
) -> None:
    key = secrets.token_hex(32)
    script = f"mkdir -p {LAYER}/venv && head -c 3000000 /dev/urandom >{LAYER}/venv/bulk"
    step = BuildStep("Filling", ("/bin/sh", "-ec", script), network=False, cache=Cache.NONE)
    await engine.layers.build_layer(LayerPlan(key, {}, (step,), runs_foreign_code=False), lambda _: None)
    spec = await make_spec(engine, apps.SILENT, layer_key=key)
    await engine.sandboxes.start(spec)
    # The kernel counts what it has written out.
    await asyncio.to_thread(engine._here.store.deferred_sync.sync)
    found = provider.read_inventory(settings.data_dir)
    assert found is not None
    (layer,) = [one for one in found.layers if one.key == key]
    assert layer.seen
    assert layer.bytes >= 3_000_000
    (disk,) = [one for one in found.disks if one.id == spec.disk]
    assert 0 < disk.bytes < disk.limit_bytes
    assert [base.seen for base in found.bases if base.own] == [True]
    assert found.scratch >= 1
    assert 0 < found.free_bytes <= found.total_bytes
    await engine.sandboxes.stop(spec.id, 0)
    await engine.sandboxes.remove(spec.id)
    after = provider.read_inventory(settings.data_dir)
    assert after is not None
    assert [one.seen for one in after.layers if one.key == key] == [False]


def test_a_directory_that_no_service_ran_in_holds_nothing(settings: EngineOptions) -> None:
    assert provider.read_inventory(settings.data_dir / "elsewhere") is None
