"""Inventory of this machine: its storage with the builders that use it, and the checks of ``builderd doctor``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from builderd.core.ids import BuilderId, DiskId


@dataclass(frozen=True, slots=True)
class StoredLayer:
    """Stored layer. ``asked_at`` is its last use, ``seen`` is True while a sandbox is mounted on it."""

    key: str
    bytes: int
    asked_at: datetime
    seen: bool


@dataclass(frozen=True, slots=True)
class StoredDisk:
    """Stored disk: used bytes and its limit."""

    id: DiskId
    bytes: int
    limit_bytes: int


@dataclass(frozen=True, slots=True)
class StoredBase:
    """Stored base root file system. ``own``: the one of this service; all services of the host share bases."""

    name: str
    bytes: int
    asked_at: datetime
    seen: bool
    own: bool


@dataclass(frozen=True, slots=True)
class EngineInventory:
    """Contents of the engine's store; sizes in bytes. ``scratch`` counts files outside of the sandboxes' disks."""

    layers: Sequence[StoredLayer]
    disks: Sequence[StoredDisk]
    bases: Sequence[StoredBase]
    cache_bytes: int
    scratch_bytes: int
    scratch: int


@dataclass(frozen=True, slots=True)
class BuilderStorage:
    """Storage of one builder: its disks, the layers of the versions that it may run, its bundles."""

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
    """Everything stored. ``stored`` is None while the engine's store cannot be read. ``bundles``: hash → bytes."""

    users: Sequence[BuilderStorage]
    bundles: Mapping[str, int] = field(default_factory=dict)
    used_bundles: frozenset[str] = frozenset()
    stored: EngineInventory | None = None


#: Search path for programs, independent of the operator's shell: the one of a plain ``su`` lacks the sbin folders.
SEARCH_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True, slots=True)
class PreflightCheck:
    """Result of one check. ``detail`` says what was found, ``cost`` the consequence of a miss and its cure.

    The service cannot run while a ``vital`` check fails.
    """

    name: str
    found: bool
    detail: str
    cost: str
    vital: bool
