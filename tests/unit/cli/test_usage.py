"""Usage by builder, as the operator reads it."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

from builderd.cli.service import usage_lines
from builderd.domain.ids import BuilderId, DiskId
from builderd.domain.inventory import BuilderStorage, EngineInventory, Inventory, StoredBase, StoredDisk, StoredLayer
from builderd.domain.resources import GB

NOW = datetime(2026, 1, 31, 12, 0, tzinfo=UTC)
KEY, OTHER = "a" * 64, "b" * 64
USERS = (
    BuilderStorage(
        "acme", BuilderId("1"), "api", "running", 3, 2, (DiskId("d1"),), KEY, frozenset({KEY}), frozenset({"x"})
    ),
    BuilderStorage(
        "acme", BuilderId("2"), "job", "stopped", 1, 1, (DiskId("d2"),), None, frozenset(), frozenset({"y"})
    ),
    BuilderStorage("zeta", BuilderId("3"), "web", "running", 1, 1, (DiskId("d3"),), KEY, frozenset({KEY}), frozenset()),
)
HELD = EngineInventory(
    layers=[StoredLayer(KEY, GB // 2, NOW, seen=True), StoredLayer(OTHER, GB, NOW, seen=False)],
    disks=[StoredDisk(DiskId(name), GB, 3 * GB) for name in ("d1", "d2", "d3", "stray")],
    bases=[StoredBase("5c1b", GB, NOW, seen=True, own=True), StoredBase("0old", GB, NOW, seen=False, own=False)],
    cache_bytes=2 * GB,
    scratch_bytes=0,
    scratch=3,
    free_bytes=10 * GB,
    total_bytes=50 * GB,
)
INVENTORY = Inventory(USERS, {"x": GB, "y": GB, "z": GB}, frozenset({"x", "y"}), HELD)


def test_usage_is_listed_by_tenant_and_builder() -> None:
    text = list(usage_lines(INVENTORY))
    assert text[0] == "tenant acme: 2 builders, disks 2.00 GB of 6.00 GB"
    assert text[1].split()[:4] == ["api", "running", "v3", "(2"]
    assert "1.00 GB of 3.00 GB" in text[1]
    assert KEY[:12] in text[1]
    assert "layer none" in text[2]
    assert text[3].startswith("tenant zeta: 1 builders")


def test_layers_are_listed_with_users_or_unused() -> None:
    text = "\n".join(usage_lines(INVENTORY))
    assert "layers: 2, 1.50 GB" in text
    assert "acme/api, zeta/web, a sandbox runs on it" in text
    assert f"{OTHER[:12]}    1.00 GB  unused" in text


def test_bases_bundles_and_strays_are_listed() -> None:
    text = "\n".join(usage_lines(INVENTORY))
    assert "base 5c1b: 1.00 GB, ours, sandboxes run on it" in text
    assert "base 0old: 1.00 GB, unused" in text
    assert "bundles: 3, 3.00 GB; of no use any more: 1, 1.00 GB" in text
    assert "disk stray: 1.00 GB, of no builder" in text
    assert "store: 10.00 GB free of 50.00 GB" in text


def test_without_the_store_it_says_how_to_see_more() -> None:
    text = list(usage_lines(replace(INVENTORY, held=None)))
    assert text[-1].startswith("The store is not mounted")
    assert any(line.startswith("tenant acme: 2 builders") for line in text)


def test_empty_usage_is_shown() -> None:
    assert next(iter(usage_lines(Inventory(())))) == "No builders."
