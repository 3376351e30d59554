"""Preflight check of the preview proxy, HAProxy."""

from __future__ import annotations

import shutil
import subprocess

from builderd.domain.inventory import SEARCH_PATH, PreflightCheck


def run_check(program: str = "haproxy") -> PreflightCheck:
    """Check that HAProxy runs; changes nothing."""
    cost = "there are no previews: apt-get install haproxy"
    path = shutil.which(program, path=SEARCH_PATH)
    if path is None:
        return PreflightCheck("haproxy", False, "not installed", cost, True)
    done = subprocess.run([path, "-v"], capture_output=True, text=True, timeout=10, check=False)
    return PreflightCheck("haproxy", done.returncode == 0, done.stdout.split("\n")[0], cost, True)
