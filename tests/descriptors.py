"""Open descriptors of a process."""

from __future__ import annotations

import contextlib
from pathlib import Path


def held_by(pid: int | str) -> set[str]:
    """Return the targets of a process's descriptors; one that is closed meanwhile is left out."""
    held = set[str]()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            held.add(str(descriptor.readlink()))
    return held
