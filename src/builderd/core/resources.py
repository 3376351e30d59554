"""Resources of a builder, quotas of tenants and the capacity of the machine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields

#: A GB here is 2^30 bytes, as machines and clouds sell it.
GB = 1 << 30


def size_text(size: float) -> str:
    """Return bytes as ``1.50 GB``, ``2.5 MB``, ``30.0 kB`` (2^30, 10^6, 10^3 bytes) or ``12 B``; nothing below zero."""
    if size < 1_000:
        return f"{max(size, 0):.0f} B"
    if size >= GB:
        return f"{size / GB:.2f} GB"
    return f"{size / 1_000_000:.1f} MB" if size >= 1_000_000 else f"{size / 1_000:.1f} kB"


@dataclass(frozen=True, slots=True)
class Resources:
    """``cpu`` in vCPU, ``memory`` and ``disk`` in GB (2^30 bytes)."""

    cpu: float = 1
    memory: float = 1
    disk: float = 3

    @property
    def memory_bytes(self) -> int:
        return int(self.memory * GB)

    @property
    def disk_bytes(self) -> int:
        return int(self.disk * GB)

    def times(self, sandboxes: int) -> Resources:
        """Return the resources of so many sandboxes on one disk."""
        return Resources(self.cpu * sandboxes, self.memory * sandboxes, self.disk)


MINIMUM = Resources(cpu=0.25, memory=0.125, disk=1)


def resource_errors(resources: Resources, maximum: Resources) -> Mapping[str, str]:
    """Return ``{"cpu": reason, …}`` for each amount that is NaN or out of bounds."""
    errors: dict[str, str] = {}
    for name, unit in (("cpu", "vCPU"), ("memory", "GB"), ("disk", "GB")):
        value, low, high = (getattr(r, name) for r in (resources, MINIMUM, maximum))
        if not low <= value <= high:  # neither for a NaN
            errors[name] = f"must be from {low:g} to {high:g} {unit}"
    return errors


UNITS = {"builders": "", "running_builders": "", "cpu": " vCPU", "memory": " GB of memory", "disk": " GB of disk"}


@dataclass(frozen=True, slots=True)
class Allocation:
    """Allocated resources: ``cpu`` in vCPU and ``memory`` in GB of running builders, ``disk`` in GB of all builders."""

    builders: int = 0
    running_builders: int = 0
    cpu: float = 0
    memory: float = 0
    disk: float = 0

    def __add__(self, other: Allocation) -> Allocation:
        return Allocation(*(getattr(self, one.name) + getattr(other, one.name) for one in fields(Allocation)))

    def __sub__(self, other: Allocation) -> Allocation:
        return Allocation(*(getattr(self, one.name) - getattr(other, one.name) for one in fields(Allocation)))


def larger_of(one: Allocation, other: Allocation) -> Allocation:
    """Return the larger amount of each resource."""
    return Allocation(*(max(getattr(one, each.name), getattr(other, each.name)) for each in fields(Allocation)))


def allocation_of(resources: Resources, *, running: bool, further: int = 0) -> Allocation:
    """Return the allocation of one builder; CPU and memory only if it is to run.

    Each sandbox of a ``further`` process takes as much as the app's own, and counts as a builder that runs.
    """
    if not running:
        return Allocation(builders=1, disk=resources.disk)
    all_of_it = resources.times(1 + further)
    return Allocation(1, 1 + further, all_of_it.cpu, all_of_it.memory, resources.disk)


@dataclass(frozen=True, slots=True)
class Limit:
    """Limits of an allocation; None: unlimited."""

    builders: int | None = None
    running_builders: int | None = None
    cpu: float | None = None
    memory: float | None = None
    disk: float | None = None

    def exceeded(self, allocated: Allocation, more: Allocation) -> Iterator[Excess]:
        """Yield each resource of ``more`` that would exceed its limit. Resources that do not grow are not checked."""
        for one in fields(Limit):
            limit, wanted = getattr(self, one.name), getattr(more, one.name)
            used = getattr(allocated, one.name)
            if limit is not None and wanted > 0 and used + wanted > limit + TOLERANCE:
                yield Excess(one.name, limit, used, wanted)


#: Without any limit.
UNLIMITED = Limit()

#: Sums of binary fractions are off by less than this.
TOLERANCE = 1e-6


@dataclass(frozen=True, slots=True)
class Excess:
    """One exceeded limit: ``used`` is allocated, and ``wanted`` is requested on top."""

    name: str
    limit: float
    used: float
    wanted: float

    @property
    def unit(self) -> str:
        return UNITS[self.name] or f" {self.name.replace('_', ' ')}"

    def __str__(self) -> str:
        return f"{self.used:g} of {self.limit:g}{self.unit} are allocated, and {self.wanted:g} more are requested"


@dataclass(frozen=True, slots=True)
class Capacity:
    """Capacity of an engine: vCPU, GB of memory, GB of disk."""

    cpu: float
    memory: float
    disk: float


@dataclass(frozen=True, slots=True)
class MachineUse:
    """Use of an engine's machines: ``cpu`` is the load of the last minute, the others GB, ``disk`` of ``disk_total``.

    ``disks``: how many more disks of the default size its store takes.
    """

    capacity: Capacity
    cpu: float
    memory: float
    disk: float
    disk_total: float
    disks: int


#: Settings that say how many times the machine's resources may be promised.
PROMISED_BY = {"cpu": "capacity.cpu", "memory": "capacity.memory", "disk": "store.overcommit"}


def room_of(limit: Limit, used: MachineUse, allocated: Allocation) -> tuple[int, str]:
    """Return how many more running builders of default size a machine admits that may promise ``limit``, and a clause.

    ``limit`` has CPU, memory and disk.
    """
    one, rooms = allocation_of(Resources(), running=True), {"store.overcommit": used.disks}
    for name, setting in PROMISED_BY.items():
        room = int((getattr(limit, name) - getattr(allocated, name) + TOLERANCE) / getattr(one, name))
        rooms[setting] = max(0, min(room, rooms.get(setting, room)))
    count, app = min(rooms.values()), "app" if min(rooms.values()) == 1 else "apps"
    settings = ", ".join(setting for setting, room in rooms.items() if room == count)
    return count, f"room for about {count} more {app} of default size ({settings} limits it)"
