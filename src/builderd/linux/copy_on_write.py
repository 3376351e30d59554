"""Attributes of folders on file systems that copy a block which is written again, such as btrfs."""

from __future__ import annotations

import fcntl
import os
import struct
from contextlib import suppress
from pathlib import Path

#: Numbers of ioctl_iflags(2) on 64-bit machines.
_GET_FLAGS, _SET_FLAGS, _NO_COPY = 0x80086601, 0x40086602, 0x00800000
_FLAGS = struct.Struct("@l")


def write_in_place(folder: Path) -> None:
    """Have files that are created in the folder from now on written in place: a block of theirs needs no new one.

    Does nothing where the file system cannot do it, or never copies.
    """
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            (flags,) = _FLAGS.unpack(fcntl.ioctl(descriptor, _GET_FLAGS, _FLAGS.pack(0)))
            if not flags & _NO_COPY:
                fcntl.ioctl(descriptor, _SET_FLAGS, _FLAGS.pack(flags | _NO_COPY))
        finally:
            os.close(descriptor)
