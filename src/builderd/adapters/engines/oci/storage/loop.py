"""Loop devices: a file as a block device.

The device holds a lock on its file for as long as it exists, so that one file never has two of them: a file
system mounted through two devices at once is destroyed. Numbers and layouts are those of linux/loop.h.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_LOOP_CONFIGURE = 0x4C0A
_LOOP_GET_STATUS64 = 0x4C05
_LOOP_SET_CAPACITY = 0x4C07
_LOOP_CTL_GET_FREE = 0x4C82
_AUTOCLEAR, _DIRECT_IO = 4, 16
_CONFIG_BYTES, _STATUS_BYTES = 304, 232
_CONFIG_FLAGS_OFFSET = 60
_TRIES = 64


@contextmanager
def loop_device(image: Path) -> Iterator[Path]:
    """Return the device of this file: the one it has, else a new one that vanishes with its last mount.

    Mount it before leaving the context. Raises ``BlockingIOError`` when the file is locked by anything else.
    """
    found = find_device(image)
    if found:
        yield found
        return
    file = os.open(image, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        device, path = _configure(file)
    finally:
        os.close(file)
    try:
        yield path
    finally:
        os.close(device)


def find_device(image: Path) -> Path | None:
    """Return the loop device of this file, also when the file was moved; None when it has none."""
    status = image.stat()
    for folder in Path("/sys/block").glob("loop*/loop"):
        device = Path("/dev") / folder.parent.name
        if _backing_file(device) == (status.st_dev, status.st_ino):
            return device
    return None


def fit_device(image: Path) -> None:
    """Resize the file's device to the file, also while it is mounted."""
    if path := find_device(image):
        with path.open("rb") as device:
            fcntl.ioctl(device, _LOOP_SET_CAPACITY)


def _backing_file(device: Path) -> tuple[int, int] | None:
    """Return (device, inode) of the file behind a loop device, or None when it has none any more."""
    buffer = bytearray(_STATUS_BYTES)
    try:
        with device.open("rb") as file:
            fcntl.ioctl(file, _LOOP_GET_STATUS64, buffer)
    except OSError:
        return None
    number, inode = struct.unpack_from("=QQ", buffer)
    return number, inode


def _configure(file: int) -> tuple[int, Path]:
    """Attach the file to a free device; retry, since another program may take the free one first."""
    for _ in range(_TRIES):
        with Path("/dev/loop-control").open("rb") as control:
            path = Path(f"/dev/loop{fcntl.ioctl(control, _LOOP_CTL_GET_FREE)}")
        device = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.ioctl(device, _LOOP_CONFIGURE, _config(file))
        except OSError as error:
            os.close(device)
            if error.errno != errno.EBUSY:
                raise
        else:
            return device, path
    raise OSError(errno.EBUSY, "no free loop device")


def _config(file: int) -> bytearray:
    """struct loop_config: the file, blocks of 4096 bytes, and the flags in the status inside of it."""
    config = bytearray(struct.pack("=II", file, 4096).ljust(_CONFIG_BYTES, b"\0"))
    struct.pack_into("=I", config, _CONFIG_FLAGS_OFFSET, _AUTOCLEAR | _DIRECT_IO)
    return config
