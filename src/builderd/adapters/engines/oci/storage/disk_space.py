"""Size and use of a disk and of the writes beside it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class DiskSpace:
    """Bytes of ``/app`` with the home (``size``, ``used``), and of all else that a sandbox writes. 0: not known."""

    size: int
    used: int
    scratch_size: int
    scratch_used: int


NO_SPACE = DiskSpace(0, 0, 0, 0)
