"""Holdings: what lies on this machine, and who uses it. For the operator, who wonders where the space went."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from builderd.domain.ids import BuilderId, DiskId


@dataclass(frozen=True, slots=True)
class StoredLayer:
    """``asked_at``: when somebody last asked for it. ``seen``: a sandbox runs on it."""

    key: str
    bytes: int
    asked_at: datetime
    seen: bool


@dataclass(frozen=True, slots=True)
class StoredDisk:
    """How much of the disk is used, and how much may be."""

    id: DiskId
    bytes: int
    limit_bytes: int


@dataclass(frozen=True, slots=True)
class StoredBase:
    """``own``: what this service starts sandboxes on; bases are shared by all services of the host."""

    name: str
    bytes: int
    asked_at: datetime
    seen: bool
    own: bool


@dataclass(frozen=True, slots=True)
class EngineInventory:
    """What the engine holds; sizes in bytes. ``scratch`` is what sandboxes wrote outside of their disks."""

    layers: Sequence[StoredLayer]
    disks: Sequence[StoredDisk]
    bases: Sequence[StoredBase]
    cache_bytes: int
    scratch_bytes: int
    scratch: int
    free_bytes: int
    total_bytes: int


@dataclass(frozen=True, slots=True)
class BuilderStorage:
    """A builder and what it uses: its disks, the layers of the versions that it may run, its bundles."""

    tenant: str
    id: BuilderId
    name: str
    status: str
    version: int
    versions: int
    disks: tuple[DiskId, ...]
    layer: str | None
    layers: frozenset[str]
    bundles: frozenset[str]


@dataclass(frozen=True, slots=True)
class Inventory:
    """``held`` is None while the engine's store is not mounted, or cannot be looked at. ``bundles``: hash → bytes."""

    users: Sequence[BuilderStorage]
    bundles: Mapping[str, int] = field(default_factory=dict)
    used_bundles: frozenset[str] = frozenset()
    held: EngineInventory | None = None

    def users_of_layer(self, key: str) -> Sequence[BuilderStorage]:
        return [user for user in self.users if key in user.layers]

    def unclaimed_disks(self) -> Sequence[StoredDisk]:
        """Disks of no builder: copies for a backup, a restore or a report, or what a crash left."""
        claimed = {disk for user in self.users for disk in user.disks}
        return [disk for disk in (self.held.disks if self.held else ()) if disk.id not in claimed]

    def unused_bundles(self) -> Mapping[str, int]:
        """Those of no version that a builder may run, and of no backup."""
        return {name: size for name, size in self.bundles.items() if name not in self.used_bundles}
