"""The room in the store: no more is promised than there is, since a full store hurts everyone.

A claim is the limit of something that may grow: a disk, the package cache, a layer being made. What a claim has not
used yet must fit into what is free, above a floor. Space that is used already shows as not free, whoever uses it.
"""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from pathlib import Path

from builderd.adapters.engines.oci.storage.backing import free_bytes, total_bytes
from builderd.adapters.engines.oci.storage.quotas import Quota
from builderd.adapters.engines.oci.storage.space_info import SpaceInfo, read_space_info
from builderd.domain.errors import NoCapacity
from builderd.domain.resources import GB

#: Who takes some takes no more than this part of what is left, so that others find room beside it.
SOME = 0.25
#: What is never promised, the greater of both. btrfs is too full to delete near its end; and what it notes for itself
#: of each piece of a file counts for nobody: 4 % where all is written in pieces of 4 kB.
RESERVE, RESERVE_SHARE = GB // 2, 0.05
#: Apps are stopped from writing when less than this is left of the host's file system, however low the floor is.
LEAST = 128 << 20


@dataclass(frozen=True, slots=True)
class Ground:
    """What the store lies on. ``image``: the sparse file, which shares its file system with the rest of the host."""

    root: Path
    image: Path | None
    floor_bytes: int

    def free(self) -> int:
        """Bytes that can still be written with the floor kept; negative when it is not.

        Any of them may be metadata, and so each counts as what that takes.
        """
        inside = free_bytes(self.root) - self.reserve()
        if self.image is None:
            left = inside - self.floor_bytes
        else:
            left = min(inside, free_bytes(self.image.parent) - self.floor_bytes + self._held())
        return int(left / self.space_info().metadata_ratio)

    def reserve(self) -> int:
        """Bytes of the store that are never promised."""
        return max(RESERVE, int(total_bytes(self.root) * RESERVE_SHARE))

    def space_info(self) -> SpaceInfo:
        return read_space_info(self.root)

    def writable(self) -> int:
        """Bytes that apps may write now.

        Where promises turn out too large, they may use half of what is never promised, and no more.
        """
        inside = free_bytes(self.root) - self.reserve() // 2
        host = inside if self.image is None else free_bytes(self.image.parent) - self._host_least()
        return max(0, min(inside, host))

    def is_host_full(self) -> bool:
        """Whether it is the host that lacks the space."""
        return self.image is not None and free_bytes(self.image.parent) <= self._host_least()

    def is_host_short(self) -> bool:
        """Whether the host may soon be full."""
        return self.image is not None and free_bytes(self.image.parent) < max(2 * LEAST, self.floor_bytes)

    def _host_least(self) -> int:
        return max(LEAST, self.floor_bytes // 2)

    def is_read_only(self) -> bool:
        """Whether the kernel lets nobody write any more, as after a failed write of its own."""
        return bool(os.statvfs(self.root).f_flag & os.ST_RDONLY)

    def total(self) -> int:
        """Bytes that could be written if nothing were there, with the floor kept."""
        return max(0, self.free() + self._used())

    def _held(self) -> int:
        """What the file holds of the host's space and does not use at the moment; what waits for metadata is none."""
        assert self.image is not None
        metadata = self.space_info().metadata
        return max(0, self.image.stat().st_blocks * 512 - self._used() - metadata.free * metadata.copies)

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
            available = int(self._ground.free() * self._overcommit) - self.promised()
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

    def writable(self) -> int:
        """Bytes that can be written now, promised or not."""
        return self._ground.writable()

    def shortage(self) -> str | None:
        """What is wrong when the space that was promised is no longer there, such as after the host filled up."""
        free, promised = self._ground.free(), self.promised()
        if free * self._overcommit >= promised:
            return None
        return f"{promised / GB:.1f} GB are promised to disks, but only {max(free, 0) / GB:.1f} GB are left to write"

    def _check(self, more: int) -> None:
        available = self._ground.free() * self._overcommit
        # Claims that used nothing would fit: the usual case, and no need to look at each.
        if more <= 0 or sum(claim.size for claim in self._claims.values()) + more <= available:
            return
        promised = self.promised()
        if promised + more > available:
            raise self._full(more, promised)

    def promised(self) -> int:
        """Bytes that may still be written by those who have a claim."""
        return sum(max(0, claim.size - self._used(claim)) for claim in tuple(self._claims.values()))

    def backed(self) -> int:
        """Of these, the bytes that there has to be space for."""
        return int(self.promised() / self._overcommit)

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
