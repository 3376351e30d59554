"""No more is promised than there is, and who takes some leaves room for others."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from builderd.adapters.engines.oci.storage.room import Room
from builderd.domain.errors import NoCapacity
from builderd.domain.resources import GB


def room_of(free: int) -> Room:
    """In which nothing of what is claimed is used yet."""
    ground = SimpleNamespace(free=lambda: free, total=lambda: free)
    return Room(cast("Any", ground), cast("Any", None), overcommit=1)


def test_what_is_claimed_is_promised_only_once() -> None:
    room = room_of(10 * GB)
    room.claim("one", 6 * GB)
    with pytest.raises(NoCapacity, match=r"10\.0 GB are free, of which 6\.0 GB are promised"):
        room.claim("two", 5 * GB)
    room.release("one")
    room.claim("two", 5 * GB)


def test_those_who_take_some_leave_room_for_others() -> None:
    room = room_of(60 * GB)
    taken = [room.claim_some(name, GB // 2, 20 * GB) for name in ("one", "two", "three")]
    assert taken == sorted(taken, reverse=True)
    assert taken[0] == 15 * GB
    room.claim("disk", 20 * GB)


def test_who_takes_some_gets_the_least_as_long_as_there_is_that_and_never_more_than_the_most() -> None:
    room = room_of(GB)
    assert room.claim_some("least", GB // 2, 20 * GB) == GB // 2
    with pytest.raises(NoCapacity):
        room.claim_some("another", GB, 20 * GB)
    assert room_of(100 * GB).claim_some("most", GB // 2, 20 * GB) == 20 * GB
