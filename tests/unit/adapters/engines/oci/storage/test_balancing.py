"""Free space is moved to where it may be needed, and left alone where it need not be."""

from __future__ import annotations

import pytest

from builderd.adapters.engines.oci.storage.balancing import nearly_full, needs_conversion
from builderd.adapters.engines.oci.storage.space_info import Chunks, SpaceInfo
from builderd.domain.resources import GB

SINGLE, DUP = frozenset({"single"}), frozenset({"dup"})


def info(data_free: float, metadata_free: float, unallocated: float, metadata: frozenset[str] = SINGLE) -> SpaceInfo:
    """In GB, of a store of some 100 GB."""
    data = Chunks(int((50 + data_free) * GB), 50 * GB, SINGLE)
    return SpaceInfo(data, Chunks(int((20 + metadata_free) * GB), 20 * GB, metadata), int(unallocated * GB))


def test_reserved_space_that_fits_needs_no_balancing() -> None:
    assert nearly_full(info(5, 1, 20), 10 * GB) == []


def test_data_makes_room_for_metadata_and_the_other_way_round() -> None:
    assert nearly_full(info(12, 1, 5), 10 * GB) == ["d"]
    assert nearly_full(info(0.5, 1.5, 5), 10 * GB) == ["d", "m"]


def test_nothing_is_moved_where_nothing_is_free() -> None:
    assert nearly_full(info(0, 0, 1), 10 * GB) == []


def test_new_promises_do_not_count_what_is_free_among_metadata_so_not_much_stays_there() -> None:
    assert nearly_full(info(0, 3, 50), GB) == ["m"]


def test_two_copies_of_metadata_take_twice_the_space() -> None:
    two = info(5, 1, 20, DUP)
    assert two.metadata_ratio == 2
    assert needs_conversion(two)
    assert nearly_full(two, 12 * GB) == ["d"]


@pytest.mark.parametrize(
    ("data", "metadata", "ratio"),
    [("single", "single", 1), ("single", "raid1", 2), ("raid1", "raid1", 1), ("raid1", "raid1c3", 1.5)],
)
def test_profiles_of_an_operators_own_file_system_count_as_they_are(data: str, metadata: str, ratio: float) -> None:
    space = SpaceInfo(Chunks(GB, 0, frozenset({data})), Chunks(GB, 0, frozenset({metadata})), GB)
    assert space.metadata_ratio == ratio
