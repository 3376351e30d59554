"""Content of a layer that was just made: its size, and whether it may be kept."""

from __future__ import annotations

import os
import subprocess
from itertools import islice
from pathlib import Path

#: Folders in which installers put files, as apps see them below their root.
MADE = frozenset({"venv", "node_modules"})
#: Names of unexpected files that an error lists.
NAMED = 5


def measure(layer: Path) -> int:
    """Return the bytes of a layer's files. Blocks.

    The quota counts files that were cloned from the cache of downloads for the cache alone.
    """
    argv = ("/usr/bin/du", "--summarize", "--one-file-system", "--block-size=1", str(layer))
    return int(subprocess.run(argv, check=True, stdout=subprocess.PIPE, env={"LC_ALL": "C"}).stdout.split()[0])


def layer_error(layer: Path) -> str | None:
    """Check a layer's content: it lies below an app's root and may hold only what installers make.

    Of a great many names only the first few are checked: to leave millions costs a build little.
    """
    with os.scandir(layer) as entries:
        others = list(islice((entry.name for entry in entries if entry.name not in MADE), NAMED))
    if others:
        names = os.fsencode(", ".join(sorted(others))).decode(errors="replace")
        return f"error: the build left {names} beside what was installed"
    made = [layer / name for name in MADE if os.path.lexists(layer / name)]
    if not made or any(path.is_symlink() or not path.is_dir() for path in made):
        return "error: the installer made nothing"
    return None
