"""Preflight checks of the programs that QA needs."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from builderd.domain.inventory import SEARCH_PATH, PreflightCheck


def run_checks(chromium: Path) -> Sequence[PreflightCheck]:
    """Check for bubblewrap and Chromium; changes nothing."""
    jail = shutil.which("bwrap", path=SEARCH_PATH)
    without_jail = "QA reports judge neither pages nor the API: apt-get install bubblewrap"
    without_browser = "QA reports load no page in a browser: apt-get install chromium, or set qa.chromium"
    return [
        PreflightCheck("bubblewrap", jail is not None, jail or "not installed", without_jail, False),
        PreflightCheck("Chromium", chromium.exists(), str(chromium), without_browser, False),
    ]
