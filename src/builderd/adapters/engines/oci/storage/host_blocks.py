"""Host space behind the metadata of a store in a sparse file: allocated before it is written to.

When the host is full, a write to a part of the file that has no blocks yet fails. A failed write of data is one file's
loss; a failed write of metadata makes btrfs read-only for good. Layouts are those of linux/btrfs_tree.h.
"""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Iterator
from pathlib import Path

from builderd.adapters.engines.oci.storage.subvolumes import folder

_TREE_SEARCH_V2 = 0xC0709411
_CHUNK_TREE, _FIRST_CHUNK_TREE, _CHUNK_ITEM = 3, 256, 228
_SYSTEM, _METADATA = 2, 4
_ALL = (1 << 64) - 1
_KEY, _SIZE = struct.Struct("=7Q4L4Q"), struct.Struct("=Q")
_ITEM = struct.Struct("=3Q2L")
#: struct btrfs_chunk: length, owner, stripe length, type … number of stripes; then the stripes.
_CHUNK, _STRIPES_OFFSET, _STRIPE = struct.Struct("<4Q12xH2x"), 48, struct.Struct("<2Q16x")
_BUFFER_BYTES = 64 << 10


def allocate_metadata(root: Path, image: Path) -> None:
    """Allocate the file's blocks for all chunks of metadata. Content is kept. Raises ``OSError`` (ENOSPC)."""
    file = os.open(image, os.O_RDWR | os.O_CLOEXEC)
    try:
        for offset, length in metadata_places(root):
            os.posix_fallocate(file, offset, length)
    finally:
        os.close(file)


def metadata_places(root: Path) -> list[tuple[int, int]]:
    """Return (offset, length) of all metadata on the device, for a file system on one device."""
    with folder(root) as descriptor:
        return [
            (stripe, length)
            for length, kind, stripes in _chunks(descriptor)
            if kind & (_SYSTEM | _METADATA)
            for stripe in stripes
        ]


def _chunks(descriptor: int) -> Iterator[tuple[int, int, list[int]]]:
    """Yield (length, type, offsets of its copies) of each chunk."""
    first, count = 0, 1
    while count:
        key = (_CHUNK_TREE, _FIRST_CHUNK_TREE, _FIRST_CHUNK_TREE, first, _ALL, 0, _ALL, _CHUNK_ITEM, _CHUNK_ITEM)
        head = _KEY.pack(*key, 1 << 20, 0, 0, 0, 0, 0) + _SIZE.pack(_BUFFER_BYTES)
        buffer = bytearray(head.ljust(len(head) + _BUFFER_BYTES, b"\0"))
        fcntl.ioctl(descriptor, _TREE_SEARCH_V2, buffer)
        count, position = _KEY.unpack_from(buffer)[9], len(head)
        for _ in range(count):
            _, _, offset, _, length = _ITEM.unpack_from(buffer, position)
            yield _chunk(buffer, position + _ITEM.size)
            position += _ITEM.size + length
            first = offset + 1


def _chunk(buffer: bytearray, position: int) -> tuple[int, int, list[int]]:
    length, _, _, kind, count = _CHUNK.unpack_from(buffer, position)
    stripes = [_STRIPE.unpack_from(buffer, position + _STRIPES_OFFSET + _STRIPE.size * index) for index in range(count)]
    return length, kind, [offset for _, offset in stripes]
