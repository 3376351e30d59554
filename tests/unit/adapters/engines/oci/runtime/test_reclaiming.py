"""Times at which the memory of frozen sandboxes is moved out."""

from __future__ import annotations

from pathlib import Path

import pytest

from builderd.adapters.engines.oci.runtime import reclaiming
from builderd.adapters.engines.oci.runtime.reclaiming import has_zram

HEADING = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n"


def test_memory_is_moved_out_where_the_machine_swaps_to_zram() -> None:
    assert has_zram(f"{HEADING}/dev/zram0 partition 4194300 0 100\n")


def test_a_disk_is_too_slow_to_come_back_from() -> None:
    assert not has_zram(f"{HEADING}/dev/sda2 partition 4194300 0 -2\n")
    assert not has_zram(HEADING)


def test_a_kernel_that_knows_no_swap_has_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(reclaiming, "_SWAPS", tmp_path / "swaps")
    assert not reclaiming.swaps_to_zram()
    (tmp_path / "swaps").write_text(f"{HEADING}/dev/zram0 partition 4194300 0 100\n")
    assert reclaiming.swaps_to_zram()
