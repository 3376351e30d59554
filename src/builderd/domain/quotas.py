"""Quotas of tenants and the capacity of the machine: limits of allocated resources."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields

from builderd.domain.resources import Resources

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


def allocation_of(resources: Resources, *, running: bool) -> Allocation:
    """Return the allocation of one builder; CPU and memory only if it is to run."""
    if not running:
        return Allocation(builders=1, disk=resources.disk)
    return Allocation(1, 1, resources.cpu, resources.memory, resources.disk)


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

    def times(self, cpu: float, memory: float) -> Limit:
        """Return the limits with overcommit factors for CPU and memory; the engine's disk already has its own."""
        return Limit(cpu=self.cpu * cpu, memory=self.memory * memory, disk=self.disk)
