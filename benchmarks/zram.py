"""Compressed memory (zram) as swap, for as long as a measurement lasts."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

DEVICE, BLOCK = Path("/dev/zram0"), Path("/sys/block/zram0")
SIZE = "8G"


def is_there() -> bool:
    """Whether the kernel has it, and nobody uses it."""
    return DEVICE.exists() and (BLOCK / "disksize").read_text().strip() == "0"


def used() -> int:
    """Bytes of real memory that it takes now."""
    statistics = BLOCK / "mm_stat"
    return int(statistics.read_text().split()[2]) if statistics.exists() else 0


@contextlib.contextmanager
def swapped_on() -> Iterator[None]:
    """The machine swaps to it. Afterwards it is as before."""
    (BLOCK / "disksize").write_text(SIZE)
    try:
        subprocess.run(["mkswap", str(DEVICE)], check=True, capture_output=True)
        subprocess.run(["swapon", "--priority", "100", str(DEVICE)], check=True, capture_output=True)
        try:
            yield
        finally:
            subprocess.run(["swapoff", str(DEVICE)], check=True, capture_output=True)
    finally:
        (BLOCK / "reset").write_text("1")
