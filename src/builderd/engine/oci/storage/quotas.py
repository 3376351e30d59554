"""Disk quota: limits of btrfs subvolumes, by simple quotas (Linux 6.7).

A limit is set on a group above the subvolume's own: a subvolume made inside of it, which any process may do that can
write there, joins that group and so falls under the same limit.

One more group lies above all limits of a service. It usually has no limit; where space is about to run out, its limit
stops all sandboxes at once, before a write fails. Two others count the growth of a disk with its scratch, and of all
that a tenant has (``growth``). Numbers and layouts are those of linux/btrfs.h.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import logging
import struct
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from builderd.core.errors import EngineUnavailable
from builderd.engine.oci.storage.subvolumes import (
    ROOT_INODE,
    delete_subvolume,
    file_system_uuid,
    folder,
    is_subvolume,
    subvolume_number,
)
from builderd.engine.oci.storage.tree import clear
from builderd.linux.atomic_files import read_if_there

log = logging.getLogger(__name__)

#: A subvolume, or a store, with less free space than this is full.
FULL = 32 << 20

_QUOTA_CTL = 0xC0109428
_QGROUP_ASSIGN = 0x40189429
_QGROUP_CREATE = 0x4010942A
_QGROUP_LIMIT = 0x8030942B

_QUOTA_ENABLE_SIMPLE = 4
_LIMIT_REFERENCED = 1 << 0
_NO_LIMIT = (1 << 64) - 1
#: Attributes of a group: data and metadata of running writes (fs/btrfs/qgroup.h, ``btrfs_qgroup_rsv_type``).
_RESERVED = ("rsv_data", "rsv_meta_pertrans", "rsv_meta_prealloc")
_LEVEL = 1 << 48
#: Level of the service's groups; an operator's own groups are usually lower.
_OURS = 100 * _LEVEL
#: Level of the groups above all limits of one service each.
_TOTALS = 101 * _LEVEL
#: Levels of the groups that limit the growth of one disk, and of one tenant.
_DISKS, _TENANTS = 102 * _LEVEL, 103 * _LEVEL


class Quota:
    """Limits of one service on the file system of ``root``. Made by ``enable_quota``.

    ``service`` tells its groups from those of another service on the same file system, below 2^32.
    """

    def __init__(self, root: Path, service: int = 0) -> None:
        self._root = root
        self._groups = _groups_folder(root)
        self._service = service
        #: Taken while groups above others are made, which have no member yet, and while unused ones are removed.
        self._lock = threading.Lock()
        #: Group above all limits of the service.
        self.total = _TOTALS | service

    def group(self, subvolume: Path) -> int:
        """Return the group that limits this subvolume and all inside of it."""
        with folder(subvolume) as inside:
            number = subvolume_number(inside)
        return number | _OURS

    def limit(self, subvolume: Path, size_bytes: int) -> int:
        """Set the limit of a subvolume that is empty at the first call; return its group.

        An unchanged limit is not written again: a full store would refuse it.
        """
        group = self.group(subvolume)
        if self.limit_of(group) != size_bytes:
            with folder(self._root) as root:
                _create_group(root, group)
                for member, above in ((group % _LEVEL, group), (group, self.total)):
                    _assign(root, member, above)
                _set_limit(root, group, size_bytes)
        return group

    def disk_growth(self, group: int) -> int:
        """Return the group that counts the growth of the disk with this group."""
        return group % _LEVEL | _DISKS

    def tenant_growth(self, tenant: str) -> int:
        """Return the group that counts the growth of all that a tenant has on this service's store."""
        digest = hashlib.blake2b(f"{self._service} {tenant}".encode(), digest_size=6).digest()
        return int.from_bytes(digest) | _TENANTS

    def count_growth(self, group: int, disk: int, tenant: str) -> None:
        """Count what ``group`` grows by as the growth of the disk with the group ``disk``, and of the tenant.

        Where the store has no room to record that, it is left to the next start.
        """
        above, top = self.disk_growth(disk), self.tenant_growth(tenant)
        try:
            with self._lock, folder(self._root) as root:
                for made in (above, top):
                    _create_group(root, made)
                _assign(root, group, above)
                _assign(root, above, top)
        except OSError as error:
            if error.errno not in (errno.EDQUOT, errno.ENOSPC):
                raise
            log.warning("growth not counted tenant=%s group=%d error=%s", tenant, group, error)

    def delete(self, subvolume: Path) -> None:
        """Delete a subvolume with all inside, also when its limit is reached or the store is full.

        Nothing is made for it, since a full store refuses that. Subvolumes inside of one at its limit go once the limit
        is lifted. Files go in a store without a single free block, by the kernel's own reserve.
        """
        if not is_subvolume(subvolume):
            return
        try:
            delete_subvolume(subvolume)
        except OSError as error:
            if error.errno not in (errno.EDQUOT, errno.ENOSPC):
                raise
            log.warning("subvolume not deleted, freeing space first path=%s error=%s", subvolume, error)
            if error.errno == errno.EDQUOT:
                group = self.group(subvolume)
                disks = [
                    _DISKS | int(path.name.partition("_")[2]) for path in self._groups.glob(f"{_DISKS // _LEVEL}_*")
                ]
                with folder(self._root) as root:
                    for above in (self.total, *disks):
                        with suppress(FileNotFoundError):
                            fcntl.ioctl(root, _QGROUP_ASSIGN, struct.pack("=3Q", 0, group, above))
                    _set_limit(root, group, _NO_LIMIT)
            else:
                with folder(subvolume) as inside:
                    clear(inside)
            delete_subvolume(subvolume)

    def limit_together(self, group: int, size_bytes: int | None) -> None:
        """Limit the bytes of all that a group above limits counts; None removes the limit."""
        if self.limit_of(group) != (size_bytes or 0):
            with folder(self._root) as root:
                _set_limit(root, group, _NO_LIMIT if size_bytes is None else size_bytes)

    def used(self, group: int) -> int:
        """Return the bytes that count against the limit now."""
        return int(self._attribute(group, "referenced") or 0)

    def reserved(self, group: int) -> int:
        """Return the bytes of writes that are still in memory, which count against the limit too."""
        return sum(int(self._attribute(group, name) or 0) for name in _RESERVED)

    def limit_of(self, group: int) -> int:
        """Return the limit in bytes, 0 for none."""
        limit = int(self._attribute(group, "max_referenced") or 0)
        return 0 if limit == _NO_LIMIT else limit

    def room(self, group: int) -> int:
        """Return the bytes that a group's limit leaves; more than any file system has where it has none."""
        limit = self.limit_of(group)
        return limit - self.used(group) if limit else _NO_LIMIT

    def is_at_limit(self, subvolume: Path) -> bool:
        """Return True if so little is left of a subvolume's limit that writes fail. Without a limit: False."""
        group = self.group(subvolume)
        limit = self.limit_of(group)
        return limit > 0 and limit - self.used(group) - self.reserved(group) < min(FULL, limit // 4)

    def _attribute(self, group: int, name: str) -> str | None:
        level, number = divmod(group, _LEVEL)
        try:
            return (self._groups / f"{level}_{number}" / name).read_text().strip()
        except FileNotFoundError:
            return None

    def drop_unused(self) -> None:
        """Remove the groups of deleted subvolumes."""
        with self._lock, folder(self._root) as root:
            for level in (0, *(level // _LEVEL for level in (_OURS, _DISKS, _TENANTS))):
                for group in self._groups.glob(f"{level}_*"):
                    number = int(group.name.partition("_")[2])
                    if number < ROOT_INODE:
                        continue
                    try:
                        fcntl.ioctl(root, _QGROUP_CREATE, struct.pack("=QQ", 0, level * _LEVEL + number))
                    except OSError as error:
                        # The kernel refuses while the subvolume lives and until the space counted there was released.
                        if error.errno not in (errno.EBUSY, errno.ENOENT):
                            raise


def _assign(root: int, member: int, above: int) -> None:
    with suppress(FileExistsError):
        fcntl.ioctl(root, _QGROUP_ASSIGN, struct.pack("=3Q", 1, member, above))


def _create_group(root: int, group: int) -> None:
    with suppress(FileExistsError):
        fcntl.ioctl(root, _QGROUP_CREATE, struct.pack("=QQ", 1, group))


def _set_limit(root: int, group: int, size_bytes: int) -> None:
    fcntl.ioctl(root, _QGROUP_LIMIT, struct.pack("=6Q", group, _LIMIT_REFERENCED, size_bytes, 0, 0, 0))


def enable_quota(root: Path, service: int) -> Quota:
    """Turn simple quotas on if they are off. Raises ``EngineUnavailable`` where the older ones are on."""
    groups = _groups_folder(root)
    if not groups.exists():
        with folder(root) as descriptor:
            fcntl.ioctl(descriptor, _QUOTA_CTL, bytearray(struct.pack("=QQ", _QUOTA_ENABLE_SIMPLE, 0)))
    if (read_if_there(groups / "mode") or "").strip() != "squota":
        raise EngineUnavailable(
            f"{root} counts by the older quota groups of btrfs: turn them off (btrfs quota disable {root}), and start "
            "the service again, which turns on simple quotas."
        )
    quota = Quota(root, service)
    with folder(root) as descriptor:
        _create_group(descriptor, quota.total)
    return quota


def _groups_folder(root: Path) -> Path:
    return Path("/sys/fs/btrfs") / file_system_uuid(root) / "qgroups"


@dataclass(frozen=True, slots=True)
class DiskSpace:
    """Bytes of ``/app`` with the home (``size``, ``used``), and of all else that a sandbox writes. 0: not known."""

    size: int
    used: int
    scratch_size: int
    scratch_used: int


NO_SPACE = DiskSpace(0, 0, 0, 0)
