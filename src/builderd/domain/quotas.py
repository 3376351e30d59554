"""What may be promised: to a tenant by its quota, and to all of them together by what the machine has."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields

from builderd.domain.resources import Resources

UNITS = {"builders": "", "running_builders": "", "cpu": " vCPU", "memory": " GB of memory", "disk": " GB of disk"}


@dataclass(frozen=True, slots=True)
class Allocation:
    """How much is promised. ``cpu`` in vCPU and ``memory`` in GB, of builders that are wanted running; ``disk`` in
    GB, of all that there are.
    """

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
    """Of each thing, the more."""
    return Allocation(*(max(getattr(one, each.name), getattr(other, each.name)) for each in fields(Allocation)))


def allocation_of(resources: Resources, *, running: bool) -> Allocation:
    """Of one builder, wanted running or not."""
    if not running:
        return Allocation(builders=1, disk=resources.disk)
    return Allocation(1, 1, resources.cpu, resources.memory, resources.disk)


@dataclass(frozen=True, slots=True)
class Limit:
    """The most of each that may be promised; None: as much as is wanted."""

    builders: int | None = None
    running_builders: int | None = None
    cpu: float | None = None
    memory: float | None = None
    disk: float | None = None

    def exceeded(self, promised: Allocation, more: Allocation) -> Iterator[Excess]:
        """What of ``more`` would go beyond it. What does not grow is not held against anybody."""
        for one in fields(Limit):
            limit, wanted = getattr(self, one.name), getattr(more, one.name)
            used = getattr(promised, one.name)
            if limit is not None and wanted > 0 and used + wanted > limit + TOLERANCE:
                yield Excess(one.name, limit, used, wanted)


#: Sums of binary fractions are off by less than this.
TOLERANCE = 1e-6


@dataclass(frozen=True, slots=True)
class Excess:
    """One thing of which ``limit`` may be promised, ``used`` is, and ``wanted`` is asked for on top."""

    name: str
    limit: float
    used: float
    wanted: float

    @property
    def unit(self) -> str:
        return UNITS[self.name] or f" {self.name.replace('_', ' ')}"

    def __str__(self) -> str:
        return f"{self.used:g} of {self.limit:g}{self.unit} are taken, and {self.wanted:g} more are asked for"


@dataclass(frozen=True, slots=True)
class Capacity:
    """What an engine has: vCPU, GB of memory, GB of disk."""

    cpu: float
    memory: float
    disk: float

    def times(self, cpu: float, memory: float) -> Limit:
        """What may be promised of it. The engine says itself how much of its disk it promises."""
        return Limit(cpu=self.cpu * cpu, memory=self.memory * memory, disk=self.disk)
