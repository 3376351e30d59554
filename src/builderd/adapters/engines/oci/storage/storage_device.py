"""Space of the file system that the store lies on: free, reserved, writable, total."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from builderd.adapters.engines.oci.storage.backing import free_bytes, total_bytes
from builderd.adapters.engines.oci.storage.subvolumes import file_system_uuid
from builderd.domain.resources import GB
from builderd.linux.small_files import read_small

#: Never reserved, the greater of both. btrfs cannot delete when it is almost full; and its extent records count against
#: no quota: 4 % where all is written in pieces of 4 kB.
RESERVE, RESERVE_SHARE = GB // 2, 0.05
#: Apps are stopped from writing when less than this is left of the host's file system, however low the floor is.
LEAST = 128 << 20
#: Bytes of device that one byte takes, by profile. Parity takes less and counts as a second copy.
_COPIES = {"single": 1, "raid0": 1, "raid1c3": 3, "raid1c4": 4}
_OTHER_COPIES = 2


@dataclass(frozen=True, slots=True)
class Chunks:
    """Parts of the device that btrfs keeps for data or for metadata: bytes of content, and copies of each byte.

    A byte that is free in a chunk of one kind is of no use to the other.
    """

    total: int
    used: int
    copies: int

    @property
    def free(self) -> int:
        return self.total - self.used


def read_chunks(root: Path, kind: Literal["data", "metadata"]) -> Chunks:
    """Read the chunks of a kind, of the file system that ``root`` lies on, from /sys."""
    folder = Path("/sys/fs/btrfs", file_system_uuid(root), "allocation", kind)
    profiles = [path.parent.name for path in folder.glob("*/total_bytes") if int(read_small(path))]
    copies = max((_COPIES.get(profile, _OTHER_COPIES) for profile in profiles), default=1)
    return Chunks(int(read_small(folder / "total_bytes")), int(read_small(folder / "bytes_used")), copies)


@dataclass(frozen=True, slots=True)
class StorageDevice:
    """Free and used space below the store.

    ``root`` is its mount point, ``image`` its sparse file, which shares a file system with the rest of the host, None
    on a device or folder of its own; ``floor_bytes`` stay free on the host.
    """

    root: Path
    image: Path | None
    floor_bytes: int

    def free(self) -> int:
        """Return the bytes that can be written above the floor; negative when less than the floor is free.

        Any byte may become metadata, so each is counted with the number of metadata copies.
        """
        return int(min(self._inside(), self._on_host()) / self.metadata_ratio())

    def metadata_ratio(self) -> float:
        """Return the device bytes of one byte of metadata divided by those of data: 2 with mkfs.btrfs' defaults."""
        return max(1.0, self.metadata().copies / read_chunks(self.root, "data").copies)

    def metadata(self) -> Chunks:
        return read_chunks(self.root, "metadata")

    def is_limited_by_host(self) -> bool:
        """Return True when the host's file system, not the store's size, limits what is free."""
        return self._on_host() < self._inside()

    def _inside(self) -> int:
        return free_bytes(self.root) - self.reserve() - (self.floor_bytes if self.image is None else 0)

    def _on_host(self) -> float:
        """Return the bytes that can be written above the host's floor, with what the sparse file has allocated.

        Free metadata space is allocated as well, but no data goes there.
        """
        if self.image is None:
            return math.inf
        metadata = self.metadata()
        unused = self.image.stat().st_blocks * 512 - self._used() - metadata.free * metadata.copies
        return free_bytes(self.image.parent) - self.floor_bytes + max(0, unused)

    def reserve(self) -> int:
        """Return the bytes of the store that are never reserved."""
        return max(RESERVE, int(total_bytes(self.root) * RESERVE_SHARE))

    def writable(self) -> int:
        """Return the bytes that apps may write now.

        When reservations turn out too large, apps may also use half of the reserve, and no more.
        """
        inside = free_bytes(self.root) - self.reserve() // 2
        host = inside if self.image is None else free_bytes(self.image.parent) - self._host_least()
        return max(0, min(inside, host))

    def is_host_full(self) -> bool:
        """Return True when the host's file system, not the store itself, is out of space."""
        return self.image is not None and free_bytes(self.image.parent) <= self._host_least()

    def is_host_short(self) -> bool:
        """Return True when the host's file system may soon be full."""
        return self.image is not None and free_bytes(self.image.parent) < max(2 * LEAST, self.floor_bytes)

    def _host_least(self) -> int:
        return max(LEAST, self.floor_bytes // 2)

    def is_read_only(self) -> bool:
        """Return True when the kernel made the file system read-only, as after a failed metadata write."""
        return bool(os.statvfs(self.root).f_flag & os.ST_RDONLY)

    def total(self) -> int:
        """Return the bytes that an empty store could hold above the floor."""
        return max(0, self.free() + self._used())

    def _used(self) -> int:
        status = os.statvfs(self.root)
        return (status.f_blocks - status.f_bfree) * status.f_frsize
