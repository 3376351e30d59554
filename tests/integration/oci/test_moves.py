"""Moves on this machine's own control groups: the task that keeps moves quick stays in its group."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from builderd.adapters.engines.oci.runtime.cgroups import ROOT
from builderd.adapters.engines.oci.runtime.moves import QuickMoves

pytestmark = pytest.mark.root


def test_the_service_stays_in_its_group() -> None:
    own = Path("/proc/self/cgroup")
    before = own.read_text()
    with QuickMoves(ROOT).expected():
        time.sleep(0.05)
        assert any(thread.name == "moves" for thread in threading.enumerate()), "this machine's groups were refused"
        assert own.read_text() == before
