"""Limits of btrfs subvolumes.

A limit is set on a group above the subvolume's own: a subvolume made inside of it, which any process may do that can
write there, joins that group and so falls under the same limit. That needs simple quotas (Linux 6.7); with the older
accounting the limit lies on the subvolume alone. Numbers and layouts are those of linux/btrfs.h.
"""

from __future__ import annotations

import errno
import fcntl
import struct
from contextlib import suppress
from pathlib import Path

from builderd.adapters.engines.oci.subvolumes import (
    ROOT_INODE,
    delete_subvolume,
    file_system_uuid,
    folder,
    is_subvolume,
    subvolume_exists,
    subvolume_number,
)

_QUOTA_CTL = 0xC0109428
_QGROUP_ASSIGN = 0x40189429
_QGROUP_CREATE = 0x4010942A
_QGROUP_LIMIT = 0x8030942B

_QUOTA_ENABLE, _QUOTA_ENABLE_SIMPLE = 1, 4
_LIMIT_REFERENCED = 1 << 0
_NO_LIMIT = (1 << 64) - 1
_LEVEL = 1 << 48
#: Where the groups of this house are; those that an operator made on the same file system lie lower, as a rule.
_OURS = 100 * _LEVEL


class Quota:
    """The limits of one file system, which ``root`` lies on. Made by ``enable_quota``."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._groups = _groups_folder(root)
        self.simple = _mode(self._groups) == "squota"

    def group(self, subvolume: Path) -> int:
        """The group that limits this subvolume and all inside of it."""
        with folder(subvolume) as inside:
            number = subvolume_number(inside)
        return number | _OURS if self.simple else number

    def limit(self, subvolume: Path, size_bytes: int) -> int:
        """Set or change the limit of a subvolume in which nothing was written before the first call; its group."""
        group = self.group(subvolume)
        with folder(self._root) as root:
            if self.simple:
                self._adopt(root, group)
            fcntl.ioctl(root, _QGROUP_LIMIT, struct.pack("=6Q", group, _LIMIT_REFERENCED, size_bytes, 0, 0, 0))
        return group

    def limit_copy(self, subvolume: Path, size_bytes: int) -> int:
        """Let so much be written to a copy that was just made: with the older accounting what it shares counts too."""
        return self.limit(subvolume, self.used(self.group(subvolume)) + size_bytes)

    def delete(self, subvolume: Path) -> None:
        """Delete it and what is inside. Where the limit is reached, that would be refused, so it is lifted first."""
        if is_subvolume(subvolume):
            self.limit(subvolume, _NO_LIMIT)
            delete_subvolume(subvolume)

    def _adopt(self, root: int, group: int) -> None:
        with suppress(FileExistsError):
            fcntl.ioctl(root, _QGROUP_CREATE, struct.pack("=QQ", 1, group))
        with suppress(FileExistsError):
            fcntl.ioctl(root, _QGROUP_ASSIGN, struct.pack("=3Q", 1, group % _LEVEL, group))

    def used(self, group: int) -> int:
        """Bytes that count against the limit now."""
        return int(self._attribute(group, "referenced") or 0)

    def limit_of(self, group: int) -> int:
        """The limit in bytes, 0 for none."""
        return int(self._attribute(group, "max_referenced") or 0)

    def _attribute(self, group: int, name: str) -> str | None:
        level, number = divmod(group, _LEVEL)
        try:
            return _read(self._groups / f"{level}_{number}" / name)
        except FileNotFoundError:
            return None

    def drop_unused(self) -> None:
        """Remove the groups whose subvolumes are gone. Newer kernels do it for those of level 0, not always at once."""
        with folder(self._root) as root:
            for level in (0, _OURS // _LEVEL):
                for group in self._groups.glob(f"{level}_*"):
                    number = int(group.name.partition("_")[2])
                    # Older kernels would remove the group of a subvolume that lives.
                    if number >= ROOT_INODE and not subvolume_exists(root, number):
                        self._drop(root, level * _LEVEL + number)

    def _drop(self, root: int, group: int) -> None:
        """The kernel refuses it while something counts there: until the space is given back."""
        try:
            fcntl.ioctl(root, _QGROUP_CREATE, struct.pack("=QQ", 0, group))
        except OSError as error:
            if error.errno not in (errno.EBUSY, errno.ENOENT):
                raise


def enable_quota(root: Path) -> Quota:
    """Turn accounting on where it is off: simple where the kernel has it. What was on before stays as it is."""
    if not _groups_folder(root).exists():
        with folder(root) as descriptor:
            _enable(descriptor)
    return Quota(root)


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
    """``qgroup`` or ``squota``; kernels before 6.7 know the first only and do not tell."""
    try:
        return _read(groups / "mode")
    except FileNotFoundError:
        return "qgroup"


def _read(path: Path) -> str:
    return path.read_text().strip()
