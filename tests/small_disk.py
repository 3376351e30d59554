"""A small file system of its own, which a test fills."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[Path]:
    """Mount an ext4 of ``size`` bytes, which no sandbox of another service keeps a copy of; unmount it afterwards."""
    image, mount = folder / "disk.img", folder / "disk"
    with image.open("wb") as file:
        file.truncate(size)
    mount.mkdir()
    subprocess.run(["mkfs.ext4", "-q", image], check=True)
    subprocess.run(["mount", "-o", "loop", image, mount], check=True)
    subprocess.run(["mount", "--make-private", mount], check=True)
    try:
        yield mount
    finally:
        subprocess.run(["umount", mount], check=True)


def free_bytes(disk: Path) -> int:
    status = os.statvfs(disk)
    return status.f_bavail * status.f_frsize


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
