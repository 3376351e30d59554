"""Limits of btrfs subvolumes.

A limit is set on a group above the subvolume's own: a subvolume made inside of it, which any process may do that can
write there, joins that group and so falls under the same limit. That needs simple quotas (Linux 6.7); with the older
accounting the limit lies on the subvolume alone.

One more group lies above all limits of a service. It usually has no limit; where space is about to run out, its limit
stops all sandboxes at once, before a write fails (``store_watch``). Numbers and layouts are those of linux/btrfs.h.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import struct
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from builderd.adapters.engines.oci.storage.subvolumes import (
    ROOT_INODE,
    delete_subvolume,
    file_system_uuid,
    folder,
    is_subvolume,
    subvolume_exists,
    subvolume_number,
)
from builderd.adapters.engines.oci.storage.tree import clear
from builderd.linux.small_files import read_small

log = logging.getLogger(__name__)

_QUOTA_CTL = 0xC0109428
_QGROUP_ASSIGN = 0x40189429
_QGROUP_CREATE = 0x4010942A
_QGROUP_LIMIT = 0x8030942B

_QUOTA_ENABLE, _QUOTA_ENABLE_SIMPLE = 1, 4
_LIMIT_REFERENCED = 1 << 0
_NO_LIMIT = (1 << 64) - 1
#: Attributes of a group: data and metadata of running writes (fs/btrfs/qgroup.h, ``btrfs_qgroup_rsv_type``).
_RESERVED = ("rsv_data", "rsv_meta_pertrans", "rsv_meta_prealloc")
_LEVEL = 1 << 48
#: Level of the service's groups; an operator's own groups are usually lower.
_OURS = 100 * _LEVEL
#: Level of the groups that hold all limits of one service each.
_TOTALS = 101 * _LEVEL


class Quota:
    """Limits of one service on the file system of ``root``. Made by ``enable_quota``.

    ``service`` tells its groups from those of another service on the same file system, below 2^32.
    """

    def __init__(self, root: Path, service: int = 0) -> None:
        self._root = root
        self._groups = _groups_folder(root)
        self.simple = _mode(self._groups) == "squota"
        #: Group above all limits of the service.
        self.total = _TOTALS | service

    def group(self, subvolume: Path) -> int:
        """Return the group that limits this subvolume and all inside of it."""
        with folder(subvolume) as inside:
            number = subvolume_number(inside)
        return number | _OURS if self.simple else number

    def limit(self, subvolume: Path, size_bytes: int) -> int:
        """Set the limit of a subvolume that is empty at the first call; return its group.

        An unchanged limit is not written again: a full store would refuse it.
        """
        group = self.group(subvolume)
        if self.limit_of(group) != size_bytes:
            with folder(self._root) as root:
                if self.simple:
                    self._adopt(root, group)
                _set_limit(root, group, size_bytes)
        return group

    def limit_copy(self, subvolume: Path, size_bytes: int) -> int:
        """Limit what is written to a fresh copy: the older accounting also counts the blocks that it shares."""
        return self.limit(subvolume, self.used(self.group(subvolume)) + size_bytes)

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
            self._make_deletable(subvolume, error.errno)
            delete_subvolume(subvolume)

    def _make_deletable(self, subvolume: Path, error: int) -> None:
        if error == errno.EDQUOT:
            self._lift(self.group(subvolume))
            return
        with folder(subvolume) as inside:
            clear(inside)

    def _lift(self, group: int) -> None:
        with folder(self._root) as root:
            if self.simple:
                with suppress(FileNotFoundError):
                    fcntl.ioctl(root, _QGROUP_ASSIGN, struct.pack("=3Q", 0, group, self.total))
            _set_limit(root, group, _NO_LIMIT)

    def _adopt(self, root: int, group: int) -> None:
        with suppress(FileExistsError):
            fcntl.ioctl(root, _QGROUP_CREATE, struct.pack("=QQ", 1, group))
        for member, above in ((group % _LEVEL, group), (group, self.total)):
            with suppress(FileExistsError):
                fcntl.ioctl(root, _QGROUP_ASSIGN, struct.pack("=3Q", 1, member, above))

    def open_total(self, subvolumes: Iterable[Path]) -> None:
        """Make the group above all limits; ``subvolumes`` with a limit from before there was one join it.

        A store that is too full for that works without it until the next start.
        """
        if not self.simple:
            return
        with folder(self._root) as root:
            try:
                with suppress(FileExistsError):
                    fcntl.ioctl(root, _QGROUP_CREATE, struct.pack("=QQ", 1, self.total))
                for subvolume in subvolumes:
                    group = self.group(subvolume)
                    if self.limit_of(group):
                        self._adopt(root, group)
            except OSError as error:
                log.warning("limit on all disks not available error=%s", error)

    def limit_total(self, size_bytes: int | None) -> None:
        """Limit the bytes of all sandboxes of the service together; None removes the limit."""
        if self.simple and self.limit_of(self.total) != (size_bytes or 0):
            with folder(self._root) as root:
                _set_limit(root, self.total, _NO_LIMIT if size_bytes is None else size_bytes)

    def total_limit(self) -> int:
        """Return the limit of all sandboxes together in bytes, 0 for none."""
        return self.limit_of(self.total)

    def used_total(self) -> int:
        """Return the bytes that all sandboxes of the service hold together."""
        return self.used(self.total)

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

    def _attribute(self, group: int, name: str) -> str | None:
        level, number = divmod(group, _LEVEL)
        try:
            return _read(self._groups / f"{level}_{number}" / name)
        except FileNotFoundError:
            return None

    def drop_unused(self) -> None:
        """Remove the groups of deleted subvolumes. Newer kernels do it for level 0, but not always at once."""
        with folder(self._root) as root:
            for level in (0, _OURS // _LEVEL):
                for group in self._groups.glob(f"{level}_*"):
                    number = int(group.name.partition("_")[2])
                    # Older kernels would remove the group of a subvolume that lives.
                    if number >= ROOT_INODE and not subvolume_exists(root, number):
                        self._drop(root, level * _LEVEL + number)

    def _drop(self, root: int, group: int) -> None:
        """Remove a group; the kernel refuses until the space counted there was released."""
        try:
            fcntl.ioctl(root, _QGROUP_CREATE, struct.pack("=QQ", 0, group))
        except OSError as error:
            if error.errno not in (errno.EBUSY, errno.ENOENT):
                raise


def _set_limit(root: int, group: int, size_bytes: int) -> None:
    fcntl.ioctl(root, _QGROUP_LIMIT, struct.pack("=6Q", group, _LIMIT_REFERENCED, size_bytes, 0, 0, 0))


def enable_quota(root: Path, service: int) -> Quota:
    """Turn accounting on if it is off, as simple quotas where the kernel has them."""
    if not _groups_folder(root).exists():
        with folder(root) as descriptor:
            _enable(descriptor)
    return Quota(root, service)


def _enable(root: int) -> None:
    for command in (_QUOTA_ENABLE_SIMPLE, _QUOTA_ENABLE):
        try:
            fcntl.ioctl(root, _QUOTA_CTL, bytearray(struct.pack("=QQ", command, 0)))
        except OSError as error:
            if command == _QUOTA_ENABLE or error.errno not in (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOTTY):
                raise
        else:
            return


def _groups_folder(root: Path) -> Path:
    return Path("/sys/fs/btrfs") / file_system_uuid(root) / "qgroups"


def _mode(groups: Path) -> str:
    """Return the mode, ``qgroup`` or ``squota``; kernels before 6.7 know the first only and do not tell."""
    try:
        return _read(groups / "mode")
    except FileNotFoundError:
        return "qgroup"


def _read(path: Path) -> str:
    return read_small(path).strip()
