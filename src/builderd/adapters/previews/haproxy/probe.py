"""Whether this machine has the preview's proxy."""

from __future__ import annotations

import shutil
import subprocess

from builderd.domain.equipment import SEARCH_PATH, PreflightCheck


def examine(program: str = "haproxy") -> PreflightCheck:
    """Looks only; changes nothing."""
    cost = "there are no previews: apt-get install haproxy"
    path = shutil.which(program, path=SEARCH_PATH)
    if path is None:
        return PreflightCheck("haproxy", False, "not installed", cost, True)
    done = subprocess.run([path, "-v"], capture_output=True, text=True, timeout=10, check=False)
    return PreflightCheck("haproxy", done.returncode == 0, done.stdout.split("\n")[0], cost, True)
