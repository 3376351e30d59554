"""No two live sandboxes share uids or an address."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest

from builderd.adapters.engines.oci.network.allocations import IDS, UID_BASE
from builderd.adapters.engines.oci.network.slots import MAX_SLOTS, Addresses, Slots
from builderd.domain.errors import NoCapacity

ADDRESSES = Addresses(IPv4Network("10.64.8.0/21"))


class Blocks:
    """Hands out blocks 3, 7, 11 and 15."""

    def __init__(self) -> None:
        self.mine: tuple[int, ...] = (3,)

    def grow(self) -> tuple[int, ...]:
        self.mine = (*self.mine, self.mine[-1] + 4)
        return self.mine


def test_slots_are_distinct_and_grow_block_by_block_to_the_bridge_s_limit() -> None:
    blocks = Blocks()
    slots = Slots(blocks.mine, blocks.grow)
    taken = [slots.take(f"{number:x}") for number in range(MAX_SLOTS)]
    assert len(set(taken)) == MAX_SLOTS
    assert blocks.mine == (3, 7, 11, 15)
    uids = {slots.uid(slot) for slot in taken}
    assert len(uids) == MAX_SLOTS
    assert all((uid - UID_BASE) % IDS == 0 for uid in uids)
    with pytest.raises(NoCapacity):
        slots.take("one too many")


def test_a_slot_given_back_is_taken_again_as_late_as_possible() -> None:
    slots = Slots((0,), tuple)
    first, second = slots.take("a"), slots.take("b")
    slots.give_back(first, "a")
    slots.give_back(first, "a")
    assert [slots.take("c") for _ in range(254)].count(first) == 0
    assert slots.take("d") == first
    assert second not in (first, slots.next())


@pytest.mark.parametrize("left", [None, "", "12"], ids=["nothing", "half-written", "from-before"])
def test_a_slot_rests_also_when_the_service_is_restarted(tmp_path: Path, left: str | None) -> None:
    memory = tmp_path / "slot"
    if left is not None:
        memory.write_text(left)
    slots = Slots((0,), tuple, memory)
    first, second = slots.take("a"), slots.take("b")
    slots.give_back(second, "b")
    again = Slots((0,), tuple, memory)
    again.occupy(first, "a")
    assert [again.take(f"c{number}") for number in range(254)].count(second) == 0
    assert again.take("d") == second


def test_a_slot_is_given_back_by_whom_it_belongs_to_only() -> None:
    slots = Slots((0,), tuple)
    slot = slots.take("of-this-boot")
    slots.give_back(slot, "of-the-boot-before")
    assert slot not in [slots.take("another") for _ in range(255)]


def test_a_slot_that_could_not_be_written_down_is_free(tmp_path: Path) -> None:
    memory = tmp_path / "slot"
    slots = Slots((0,), tuple, memory)
    memory.mkdir()
    with pytest.raises(IsADirectoryError):
        slots.take("a")
    memory.rmdir()
    assert len({slots.take(f"b{number}") for number in range(256)}) == 256


def test_slot_of_a_running_sandbox_is_not_assigned() -> None:
    slots = Slots((0,), tuple)
    slots.occupy(0, "a")
    slots.occupy(1, "b")
    assert slots.next() == slots.take("c") == 2


def test_sandboxes_without_a_way_out_have_addresses_of_their_own() -> None:
    addresses = [ADDRESSES.of(slot, egress) for slot in range(MAX_SLOTS) for egress in (True, False)]
    assert len(set(addresses)) == 2 * MAX_SLOTS
    assert not {ADDRESSES.gateway, "10.64.8.0", "10.64.15.255"} & set(addresses)
    for slot in (0, MAX_SLOTS - 1):
        assert IPv4Address(ADDRESSES.of(slot, False)) in ADDRESSES.without_egress
        assert IPv4Address(ADDRESSES.of(slot, True)) not in ADDRESSES.without_egress
        assert IPv4Address(ADDRESSES.of(slot, True)) in ADDRESSES.subnet
