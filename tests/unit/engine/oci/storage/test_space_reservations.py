"""Space reservations: no byte is reserved twice, and claims of flexible size leave space for others."""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, cast

import pytest

from builderd.core.errors import NoCapacity
from builderd.core.resources import GB
from builderd.engine.oci.storage.space_reservations import RESERVATION_SECONDS, SpaceReservations


def reservations_of(free: int, used: Mapping[int, int] | None = None) -> SpaceReservations:
    """Return reservations; ``used``: bytes by quota group, nothing if left out."""
    device = SimpleNamespace(free=lambda: free, total=lambda: free, is_limited_by_host=lambda: False)
    quota = SimpleNamespace(used=lambda group: (used or {}).get(group, 0))
    return SpaceReservations(cast("Any", device), cast("Any", quota), overcommit=1)


def test_each_byte_is_reserved_only_once() -> None:
    reservations = reservations_of(10 * GB)
    reservations.claim("one", 6 * GB)
    with pytest.raises(NoCapacity, match=r"10\.0 GB are free, of which 6\.0 GB are promised"):
        reservations.claim("two", 5 * GB)
    reservations.release("one")
    reservations.claim("two", 5 * GB)


def test_held_space_is_the_disk_s_own_and_ends_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    reservations = reservations_of(10 * GB)
    reservations.reserve("one", 6 * GB)
    reservations.reserve("one", 6 * GB)
    with pytest.raises(NoCapacity, match="stopping one frees no disk") as refused:
        reservations.reserve("two", 5 * GB)
    assert refused.value.retry_after == 60
    assert "Ask for a disk of at most 3.7 GB" in refused.value.message
    with pytest.raises(NoCapacity, match=r"beside its size\)\. Delete a builder"):
        reservations_of(1 * GB).reserve("one", 2 * GB)
    reservations.claim("one", 6 * GB)
    now = time.monotonic()
    reservations.reserve("three", 4 * GB)
    monkeypatch.setattr(time, "monotonic", lambda: now + RESERVATION_SECONDS + 60)
    reservations.reserve("four", 4 * GB)
    with pytest.raises(NoCapacity):
        reservations.claim("three", 4 * GB)
    reservations.release("four")
    reservations.claim("three", 4 * GB)


def test_claims_of_flexible_size_leave_space_for_others() -> None:
    reservations = reservations_of(60 * GB)
    taken = [reservations.claim_some(name, GB // 2, 20 * GB) for name in ("one", "two", "three")]
    assert taken == sorted(taken, reverse=True)
    assert taken[0] == 15 * GB
    reservations.claim("disk", 20 * GB)


def test_a_claim_of_flexible_size_stays_between_its_least_and_its_most() -> None:
    reservations = reservations_of(GB)
    assert reservations.claim_some("least", GB // 2, 20 * GB) == GB // 2
    with pytest.raises(NoCapacity):
        reservations.claim_some("another", GB, 20 * GB)
    assert reservations_of(100 * GB).claim_some("most", GB // 2, 20 * GB) == 20 * GB


def test_bytes_written_into_the_scratch_are_promised_no_more() -> None:
    used = {1: 2 * GB}
    reservations = reservations_of(5 * GB, used)
    reservations.count_scratch("unknown", 9)
    reservations.claim("disk", 5 * GB)
    reservations.adopt("disk", 5 * GB, 1)
    assert reservations.promised() == 3 * GB
    used[2] = GB
    reservations.count_scratch("disk", 2)
    assert reservations.promised() == 2 * GB
    reservations.claim("next", 3 * GB)
    reservations.adopt("disk", 6 * GB, 1)  # a larger disk, with the same scratch
    assert reservations.promised() == 6 * GB
    reservations.count_scratch("disk", 3)  # a new and empty one, at a start
    assert reservations.promised() == 7 * GB
