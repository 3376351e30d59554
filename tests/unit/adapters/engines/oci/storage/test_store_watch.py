"""The limit above all limits: set where less can be written than is promised, and not before."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from builderd.adapters.engines.oci.storage.space_reservations import SpaceReservations, StoreWatch

MB = 1 << 20
CULPRIT, CULPRIT_SCRATCH, NEIGHBOUR, NEIGHBOUR_SCRATCH, TOTAL = range(1, 6)
#: Seen on Linux 6.12 and 6.18 in a store of 512 MB: the culprit has filled all of its own with metadata, the neighbour
#: its disk; the neighbour's scratch of 32 MB is left.
USED = {CULPRIT: 221 * MB, CULPRIT_SCRATCH: 32 * MB, NEIGHBOUR: 70 * MB, NEIGHBOUR_SCRATCH: 0}
USED[TOTAL] = sum(USED.values())


@pytest.mark.parametrize(("writable", "limit"), [(41 * MB, None), (31 * MB, 354 * MB)])
def test_writes_are_limited_only_when_what_is_left_of_the_promises_does_not_fit(
    writable: int, limit: int | None
) -> None:
    limits: list[int | None] = []
    quota = SimpleNamespace(
        used=USED.__getitem__,
        total=TOTAL,
        limit_of=lambda _: 0,
        limit_total=limits.append,
    )
    device = SimpleNamespace(writable=lambda: writable, is_read_only=lambda: False, image=None)
    reservations = SpaceReservations(cast("Any", device), cast("Any", quota), overcommit=1)
    for name, size, group, scratch in (
        ("culprit", 220 * MB, CULPRIT, CULPRIT_SCRATCH),
        ("neighbour", 70 * MB, NEIGHBOUR, NEIGHBOUR_SCRATCH),
    ):
        reservations.adopt(name, size + 32 * MB, group)
        reservations.count_scratch(name, scratch)
    StoreWatch(cast("Any", device), cast("Any", quota), reservations).check()
    assert limits == [limit]
