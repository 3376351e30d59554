"""Division of a btrfs file system's devices between data and metadata, from /sys.

Device space is handed out in chunks, each for data or for metadata. A byte that is free in a chunk of one kind is of
no use to the other, though ``df`` counts it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from builderd.adapters.engines.oci.storage.subvolumes import file_system_uuid
from builderd.linux.small_files import read_if_there, read_small

_SYS = "/sys/fs/btrfs"
#: Bytes of device that one byte takes, by profile. Parity takes less and counts as a second copy.
_COPIES = {"single": 1, "raid0": 1, "raid1c3": 3, "raid1c4": 4}
_OTHER_COPIES = 2


@dataclass(frozen=True, slots=True)
class Chunks:
    """Chunks of one kind, sizes in bytes of content. ``profiles`` are those of which there is any."""

    total: int
    used: int
    profiles: frozenset[str]

    @property
    def free(self) -> int:
        return self.total - self.used

    @property
    def copies(self) -> int:
        return max((_COPIES.get(profile, _OTHER_COPIES) for profile in self.profiles), default=1)


@dataclass(frozen=True, slots=True)
class SpaceInfo:
    """Space of a file system. ``unallocated``: bytes of the devices that are in no chunk yet."""

    data: Chunks
    metadata: Chunks
    unallocated: int

    @property
    def size(self) -> int:
        """Bytes of the devices, without the little that btrfs keeps for chunks themselves."""
        return self.data.total * self.data.copies + self.metadata.total * self.metadata.copies + self.unallocated

    @property
    def metadata_ratio(self) -> float:
        """Device bytes of one byte of metadata divided by those of data: 2 with mkfs.btrfs' defaults."""
        return max(1.0, self.metadata.copies / self.data.copies)


def read_space_info(root: Path) -> SpaceInfo:
    """Read the space of the file system that ``root`` lies on."""
    folder = f"{_SYS}/{file_system_uuid(root)}/allocation"
    status = os.statvfs(root)
    allocated = sum(_number(f"{folder}/{kind}/disk_total") for kind in ("data", "metadata", "system"))
    unallocated = max(0, status.f_blocks * status.f_frsize - allocated)
    return SpaceInfo(_chunks(f"{folder}/data"), _chunks(f"{folder}/metadata"), unallocated)


def _chunks(folder: str) -> Chunks:
    profiles = frozenset(entry.name for entry in os.scandir(folder) if entry.is_dir() and _has_any(entry.path))
    return Chunks(_number(f"{folder}/total_bytes"), _number(f"{folder}/bytes_used"), profiles)


def _has_any(profile: str) -> bool:
    return int(read_if_there(f"{profile}/total_bytes") or 0) > 0


def _number(path: str) -> int:
    return int(read_small(path))
