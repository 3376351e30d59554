"""Resources of a builder: vCPU, memory and disk."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

#: A GB here is 2^30 bytes, as machines and clouds sell it.
GB = 1 << 30


def size_text(size: float) -> str:
    """Return bytes as ``1.50 GB``, ``2.5 MB`` or ``30.0 kB`` (2^30, 10^6 and 10^3 bytes); nothing below zero."""
    if size >= GB:
        return f"{size / GB:.2f} GB"
    return f"{size / 1_000_000:.1f} MB" if size >= 1_000_000 else f"{max(size, 0) / 1_000:.1f} kB"


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


MINIMUM = Resources(cpu=0.25, memory=0.125, disk=1)


def resource_errors(resources: Resources, maximum: Resources) -> Mapping[str, str]:
    """Return ``{"cpu": reason, …}`` for each amount that is NaN or out of bounds."""
    errors: dict[str, str] = {}
    for name, unit in (("cpu", "vCPU"), ("memory", "GB"), ("disk", "GB")):
        value, low, high = (getattr(r, name) for r in (resources, MINIMUM, maximum))
        if not low <= value <= high:  # neither for a NaN
            errors[name] = f"must be from {low:g} to {high:g} {unit}"
    return errors
