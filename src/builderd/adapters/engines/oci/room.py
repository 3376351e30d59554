"""The room in the store: no more is promised than there is, since a full store hurts everyone.

A claim is the limit of something that may grow: a disk, the package cache, a layer being made. What a claim has not
used yet must fit into what is free, above a floor. Space that is used already shows as not free, whoever uses it.
"""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from pathlib import Path

from builderd.adapters.engines.oci.backing import free_bytes
from builderd.adapters.engines.oci.quotas import Quota
from builderd.domain.errors import NoCapacity
from builderd.domain.resources import GB

#: Who takes some takes no more than this part of what is left, so that others find room beside it.
SOME = 0.25
#: What btrfs needs for itself: near the end it can be too full to delete.
RESERVE = GB // 2


@dataclass(frozen=True, slots=True)
class Ground:
    """What the store lies on. ``image``: the sparse file, which shares its file system with the rest of the host."""

    root: Path
    image: Path | None
    floor_bytes: int

    def free(self) -> int:
        """Bytes that can still be written with the floor kept; negative when it is not."""
        inside = free_bytes(self.root) - RESERVE
        if self.image is None:
            return inside - self.floor_bytes
        return min(inside, free_bytes(self.image.parent) - self.floor_bytes + self._held())

    def total(self) -> int:
        """Bytes that could be written if nothing were there, with the floor kept."""
        return max(0, self.free() + self._used())

    def _held(self) -> int:
        """What the file holds of the host's space and does not use at the moment."""
        assert self.image is not None
        return max(0, self.image.stat().st_blocks * 512 - self._used())

    def _used(self) -> int:
        status = os.statvfs(self.root)
        return (status.f_blocks - status.f_bfree) * status.f_frsize


@dataclass(frozen=True, slots=True)
class Claim:
    """``group`` tells what is used of the ``size``; None before it is known."""

    size: int
    group: int | None = None


class Room:
    """``overcommit`` 1 promises what there is; 2 promises it twice, for operators who know their apps."""

    def __init__(self, ground: Ground, quota: Quota, overcommit: float) -> None:
        self._ground = ground
        self._quota = quota
        self._overcommit = overcommit
        self._claims: dict[str, Claim] = {}
        self._lock = threading.Lock()

    def capacity(self) -> int:
        """The bytes that may be promised in all."""
        return int(self._ground.total() * self._overcommit)

    def claim(self, name: str, size_bytes: int) -> None:
        """Reserve it, or change the size of what has the name. Raises ``NoCapacity``, with the amounts in bytes."""
        with self._lock:
            known = self._claims.get(name, Claim(0))
            self._check(size_bytes - known.size)
            self._claims[name] = Claim(size_bytes, known.group)

    def claim_some(self, name: str, least: int, most: int) -> int:
        """Reserve a part of what is left, between the two; how many bytes. Raises ``NoCapacity`` below the least."""
        with self._lock:
            available = int(self._ground.free() * self._overcommit) - self._unused()
            size = max(least, min(most, int(available * SOME)))
            self._check(size)
            self._claims[name] = Claim(size)
            return size

    def settle(self, name: str, size_bytes: int, group: int) -> None:
        """Record a claim that stands already, and the group that counts its use."""
        with self._lock:
            self._claims[name] = Claim(size_bytes, group)

    def release(self, name: str) -> None:
        with self._lock:
            self._claims.pop(name, None)

    def shortage(self) -> str | None:
        """What is wrong when the space that was promised is no longer there, such as after the host filled up."""
        free, promised = self._ground.free(), self._unused()
        if free * self._overcommit >= promised:
            return None
        return f"{promised / GB:.1f} GB are promised to disks, but only {max(free, 0) / GB:.1f} GB are left to write"

    def _check(self, more: int) -> None:
        available = self._ground.free() * self._overcommit
        # Claims that used nothing would fit: the usual case, and no need to look at each.
        if more <= 0 or sum(claim.size for claim in self._claims.values()) + more <= available:
            return
        promised = self._unused()
        if promised + more > available:
            raise self._full(more, promised)

    def _unused(self) -> int:
        return sum(max(0, claim.size - self._used(claim)) for claim in self._claims.values())

    def _used(self, claim: Claim) -> int:
        return 0 if claim.group is None else self._quota.used(claim.group)

    def _full(self, more: int, promised: int) -> NoCapacity:
        free = max(self._ground.free(), 0)
        return NoCapacity(
            f"The store has no room for {more / GB:.3g} GB more: {free / GB:.1f} GB are free, of which "
            f"{promised / GB:.1f} GB are promised. Ask for a smaller disk, delete a builder, or enlarge the store "
            "(a larger store.size, or its block device; then a restart).",
            data={"wanted": more, "free": free, "promised": promised},
        )
