"""Inventory of the engine's store, read by another process while a service uses it; changes nothing."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from builderd.core.ids import DiskId
from builderd.engine.inventory import EngineInventory, StoredBase, StoredDisk, StoredLayer
from builderd.engine.oci.engine.machine import RUN_DIR
from builderd.engine.oci.network.allocations import known_instance
from builderd.engine.oci.storage.backing import free_bytes, is_mounted, mounted_roots, total_bytes
from builderd.engine.oci.storage.base import HOST_HOME, find_host_base
from builderd.engine.oci.storage.quotas import Quota
from builderd.engine.oci.storage.subvolumes import is_subvolume


def read_inventory(data_dir: Path) -> EngineInventory | None:
    """Return the inventory; None when the store is not mounted: no service ran since the machine booted. Needs root."""
    instance = known_instance(data_dir)
    root = RUN_DIR / instance.id / "store" if instance else None
    if root is None or not is_mounted(root):
        return None
    return inventory_of(root, HOST_HOME)


def inventory_of(root: Path, host_home: Path) -> EngineInventory:
    """Return the inventory of the store mounted at ``root`` and of the host's bases."""
    quota, mounted = Quota(root), mounted_roots()
    scratch = [_used(quota, path) for path in _subvolumes(root / "scratch")]
    return EngineInventory(
        layers=[_layer(quota, path, mounted) for path in _folders(root / "layers") if not path.name.startswith(".")],
        disks=[_disk(quota, path) for path in _subvolumes(root / "disks") if not path.name.startswith(".")],
        bases=list(_bases(host_home / "bases", mounted)),
        cache_bytes=_used(quota, root / "cache") if (root / "cache").exists() else 0,
        scratch_bytes=sum(scratch),
        scratch=len(scratch),
        free_bytes=free_bytes(root),
        total_bytes=total_bytes(root),
    )


def _layer(quota: Quota, path: Path, mounted: frozenset[str]) -> StoredLayer:
    seen = any(f"/layers/{path.name}/" in root for root in mounted)
    used = sum(_used(quota, generation) for generation in _subvolumes(path))
    return StoredLayer(path.name, used, _asked_at(path), seen)


def _disk(quota: Quota, path: Path) -> StoredDisk:
    group = quota.group(path)
    return StoredDisk(DiskId(path.name), quota.used(group), quota.limit_of(group))


def _bases(bases: Path, mounted: frozenset[str]) -> Iterator[StoredBase]:
    own = find_host_base()
    for path in _folders(bases):
        if not path.name.startswith("."):
            seen = any(f"/{path.name}/root" in root for root in mounted)
            yield StoredBase(
                path.name, _size(path), _asked_at(path), seen, own is not None and own.root == path / "root"
            )


def _used(quota: Quota, path: Path) -> int:
    return quota.used(quota.group(path))


def _asked_at(path: Path) -> datetime:
    return datetime.fromtimestamp(path.stat().st_mtime, UTC)


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []


def _subvolumes(folder: Path) -> list[Path]:
    return [path for path in _folders(folder) if is_subvolume(path)]


def _size(folder: Path) -> int:
    """Return the bytes that a folder's files take on the disk; hard links are counted once."""
    seen: set[int] = set()
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):
                status = (Path(parent) / name).lstat()
                total += 0 if status.st_ino in seen else status.st_blocks * 512
                seen.add(status.st_ino)
    return total
