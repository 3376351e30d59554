"""Subvolumes of btrfs: created, copied and deleted by the kernel's own calls, in a fraction of a millisecond.

Numbers and layouts are those of linux/btrfs.h and linux/btrfs_tree.h.
"""

from __future__ import annotations

import fcntl
import os
import struct
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

#: The inode of every subvolume's root (BTRFS_FIRST_FREE_OBJECTID).
ROOT_INODE = 256

_FS_INFO = 0x8400941F
_SUBVOL_CREATE_V2 = 0x50009418
_SNAP_CREATE_V2 = 0x50009417
_SNAP_DESTROY_V2 = 0x5000943F
_INO_LOOKUP = 0xD0009412
_TREE_SEARCH = 0xD0009411

_BY_ID = 1 << 4

_ROOT_TREE = 1
_ROOT_REF = 156
_ALL = (1 << 64) - 1
_SEARCH_KEY = struct.Struct("=7Q4L4Q")
_SEARCH_ITEM = struct.Struct("=3Q2L")
_SEARCH_BYTES = 4096


@contextmanager
def folder(path: Path) -> Iterator[int]:
    """Open a folder; refuse a link. The descriptor is closed with the context."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def file_system_uuid(path: Path) -> str:
    """Return the UUID of the btrfs file system that this folder lies on."""
    buffer = bytearray(1024)
    with folder(path) as descriptor:
        fcntl.ioctl(descriptor, _FS_INFO, buffer)
    return str(uuid.UUID(bytes=bytes(buffer[16:32])))


def is_subvolume(path: Path) -> bool:
    """Return True when the path, on btrfs, is the root of a subvolume."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return False
    return status.st_ino == ROOT_INODE


def create_subvolume(path: Path) -> None:
    """Create an empty subvolume. Raises ``FileExistsError``."""
    with folder(path.parent) as parent:
        fcntl.ioctl(parent, _SUBVOL_CREATE_V2, _volume_args(path.name))


def snapshot(source: Path, target: Path) -> None:
    """Create a writable copy of a subvolume; nested ones are empty folders in it. Raises ``FileExistsError``."""
    with folder(source) as origin, folder(target.parent) as parent:
        fcntl.ioctl(parent, _SNAP_CREATE_V2, _volume_args(target.name, descriptor=origin))


def delete_subvolume(path: Path) -> None:
    """Delete a subvolume with all inside. Its space comes back a little later. Idempotent."""
    try:
        with folder(path.parent) as parent:
            delete_subvolume_in(parent, path.name)
    except FileNotFoundError:
        return


def delete_subvolume_in(parent: int, name: str) -> None:
    """Delete a subvolume by its name within an open folder."""
    root = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    try:
        number = subvolume_number(root)
    finally:
        os.close(root)
    # Nested ones go first, the deepest before the others. No recursion: an app may nest them deeply.
    found = [number]
    for above in found:
        found.extend(_nested(parent, above))
    for nested in reversed(found[1:]):
        fcntl.ioctl(parent, _SNAP_DESTROY_V2, _volume_args(struct.pack("=Q", nested), flags=_BY_ID))
    fcntl.ioctl(parent, _SNAP_DESTROY_V2, _volume_args(name))


def _nested(anywhere: int, number: int) -> Iterator[int]:
    """Yield the ids of the subvolumes directly inside, from the tree of roots."""
    first = 0
    while True:
        key = _SEARCH_KEY.pack(
            *(_ROOT_TREE, number, number, first, _ALL, 0, _ALL, _ROOT_REF, _ROOT_REF, _SEARCH_BYTES, 0, 0, 0, 0, 0)
        )
        buffer = bytearray(key.ljust(_SEARCH_BYTES, b"\0"))
        fcntl.ioctl(anywhere, _TREE_SEARCH, buffer)
        position = _SEARCH_KEY.size
        count = _SEARCH_KEY.unpack_from(buffer)[9]
        if not count:
            return
        for _ in range(count):
            _, _, offset, _, length = _SEARCH_ITEM.unpack_from(buffer, position)
            position += _SEARCH_ITEM.size + length
            yield offset
        first = offset + 1


def subvolume_number(inside: int) -> int:
    """Return the id of the subvolume that an open file or folder lies in."""
    buffer = bytearray(struct.pack("=QQ", 0, ROOT_INODE).ljust(4096, b"\0"))
    fcntl.ioctl(inside, _INO_LOOKUP, buffer)
    number: int = struct.unpack_from("=Q", buffer)[0]
    return number


def _volume_args(name: str | bytes, *, descriptor: int = 0, flags: int = 0) -> bytearray:
    """Pack struct btrfs_ioctl_vol_args_v2, with a name or the id of a subvolume to delete."""
    return bytearray(struct.pack("=qQQ32x4040s", descriptor, 0, flags, os.fsencode(name)))
