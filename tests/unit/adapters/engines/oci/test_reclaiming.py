"""When the memory of frozen sandboxes is moved out."""

from __future__ import annotations

from builderd.adapters.engines.oci.reclaiming import has_zram

HEADING = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n"


def test_memory_is_moved_out_where_the_machine_swaps_to_zram() -> None:
    assert has_zram(f"{HEADING}/dev/zram0 partition 4194300 0 100\n")


def test_a_disk_is_too_slow_to_come_back_from() -> None:
    assert not has_zram(f"{HEADING}/dev/sda2 partition 4194300 0 -2\n")
    assert not has_zram(HEADING)
