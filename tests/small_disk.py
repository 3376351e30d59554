"""A small file system of its own, which a test fills."""

from __future__ import annotations

import fcntl
import os
import struct
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

#: Shuts a file system down, and the flag by which its log is not written (``EXT4_IOC_SHUTDOWN``).
_SHUTDOWN, _NO_LOG_FLUSH = 0x8004587D, 2


def cut_power(disk: Path) -> None:
    """Make the file system, an ext4, refuse all from now on, with what was not synced lost."""
    folder = os.open(disk, os.O_RDONLY)
    try:
        fcntl.ioctl(folder, _SHUTDOWN, struct.pack("I", _NO_LOG_FLUSH))
    finally:
        os.close(folder)


def restore_power(disk: Path) -> None:
    """Mount it again with what lies on its device. No process may have a file of it open.

    A sandbox that another test makes meanwhile keeps a copy of the mount until its own root is there, and with it the
    file system as it was shut down.
    """
    subprocess.run(["umount", disk], check=True)
    until = time.monotonic() + 30
    while subprocess.check_output(["losetup", "-j", disk.parent / "disk.img"]) and time.monotonic() < until:
        time.sleep(0.05)
    subprocess.run(["mount", "-o", "loop", disk.parent / "disk.img", disk], check=True)
    subprocess.run(["mount", "--make-private", disk], check=True)


@contextmanager
def small_disk(folder: Path, size: int, kind: str = "ext4") -> Iterator[Path]:
    """Mount a file system of ``size`` bytes, ext4 or btrfs, and unmount it afterwards.

    No sandbox of another service keeps a copy of it.
    """
    image, mount = folder / "disk.img", folder / "disk"
    with image.open("wb") as file:
        file.truncate(size)
    mount.mkdir()
    subprocess.run([f"mkfs.{kind}", "-q", image], check=True)
    subprocess.run(["mount", "-o", "loop", image, mount], check=True)
    subprocess.run(["mount", "--make-private", mount], check=True)
    try:
        yield mount
    finally:
        subprocess.run(["umount", mount], check=True)


def free_bytes(disk: Path) -> int:
    status = os.statvfs(disk)
    return status.f_bavail * status.f_frsize


def allocate_all(disk: Path) -> None:
    """Allocate the space of a btrfs, which keeps a little for itself that nothing else can write to."""
    file = os.open(disk / "filler", os.O_WRONLY | os.O_CREAT)
    try:
        end, piece = 0, free_bytes(disk)
        while piece >= 4096:
            try:
                os.posix_fallocate(file, end, piece)
                end += piece
            except OSError:
                piece //= 2
        os.fsync(file)
    finally:
        os.close(file)


def fill(disk: Path, left: int = 0) -> Path:
    """Take its space but for so many bytes, as root may; return the file that holds it."""
    filler = disk / "filler"
    with filler.open("ab") as file:
        os.posix_fallocate(file.fileno(), filler.stat().st_size, max(4096, free_bytes(disk) - left))
    if not left:
        with filler.open("ab", buffering=0) as file, suppress(OSError):
            while True:
                file.write(bytes(4096))
        assert free_bytes(disk) == 0
    return filler
