"""Services on one host share neither a subnet nor a uid."""

from __future__ import annotations

import json
import shutil
import stat
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest

from builderd.core.errors import EngineUnavailable, NoCapacity
from builderd.engine.oci.network.allocations import (
    BLOCKS,
    IDS,
    MAX_SLOTS,
    UID_BASE,
    Addresses,
    Allocations,
    Slots,
    bridge_name,
    free_subnet,
    known_instance,
    parse_routes,
)

ROUTES = """\
Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT
eth0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\t0\t0\t0
eth0\t000200C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0
"""


@pytest.fixture
def host(tmp_path: Path) -> Path:
    return tmp_path / "host"


def data_dir(tmp_path: Path, name: str) -> Path:
    folder = tmp_path / name
    folder.mkdir()
    return folder


def test_two_services_share_nothing(tmp_path: Path, host: Path) -> None:
    one, two = (Allocations(host).claim(data_dir(tmp_path, name), []) for name in ("one", "two"))
    assert one.id != two.id
    assert not one.network.overlaps(two.network)
    assert not set(one.blocks) & set(two.blocks)
    grown = Allocations(host).grow(one)
    assert not set(grown.blocks) & set(two.blocks)
    assert len(grown.blocks) == 2


def test_a_service_keeps_what_it_has(tmp_path: Path, host: Path) -> None:
    folder = data_dir(tmp_path, "one")
    first = Allocations(host).claim(folder, [])
    assert Allocations(host).claim(folder, [IPv4Network(first.subnet)]) == first, "its own route is no obstacle"
    Allocations(host).release(first.id)
    assert Allocations(host).claim(folder, []).subnet == first.subnet
    assert known_instance(folder) is not None


def test_a_subnet_that_came_into_use_is_left(tmp_path: Path, host: Path) -> None:
    folder = data_dir(tmp_path, "one")
    first = Allocations(host).claim(folder, [])
    wider = first.network.supernet(4)
    moved = Allocations(host).claim(folder, [wider])
    assert moved.id == first.id
    assert not moved.network.overlaps(wider)


def test_a_service_that_is_gone_gives_back_what_it_had(tmp_path: Path, host: Path) -> None:
    folders = [data_dir(tmp_path, str(number)) for number in range(BLOCKS)]
    for folder in folders:
        Allocations(host).claim(folder, [])
    late = data_dir(tmp_path, "late")
    with pytest.raises(NoCapacity, match="builderd down"):
        Allocations(host).claim(late, [])
    shutil.rmtree(folders[7])
    assert Allocations(host).claim(late, []).blocks


def test_allocation_file_is_private_to_its_owner(tmp_path: Path, host: Path) -> None:
    folder = data_dir(tmp_path, "one")
    mine = Allocations(host).claim(folder, [])
    assert stat.S_IMODE((folder / "instance.json").stat().st_mode) == 0o600
    assert len(bridge_name(mine.id)) <= 15 - len("-1019")


def test_a_copy_is_refused_for_as_long_as_the_other_one_is_there(tmp_path: Path, host: Path) -> None:
    folder, copy = data_dir(tmp_path, "one"), tmp_path / "copy"
    mine = Allocations(host).claim(folder, [])
    shutil.copytree(folder, copy)
    with pytest.raises(EngineUnavailable, match=f"{copy} is a copy of {folder}"):
        Allocations(host).claim(copy, [])
    assert Allocations(host).known() == [mine]
    shutil.rmtree(folder)
    assert Allocations(host).claim(copy, []) == replace(mine, data_dir=str(copy))


def test_moved_data_directory_is_not_a_copy(tmp_path: Path, host: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, moved, link = data_dir(tmp_path, "one"), tmp_path / "moved", tmp_path / "link"
    mine = Allocations(host).claim(folder, [])
    folder.rename(moved)
    link.symlink_to(moved)
    monkeypatch.chdir(tmp_path)
    for name in (moved, link, Path("moved"), moved):
        assert replace(Allocations(host).claim(name, []), data_dir=mine.data_dir) == mine


def test_copy_of_a_stopped_state_is_a_way_to_move(tmp_path: Path, host: Path) -> None:
    folder, copy = data_dir(tmp_path, "one"), tmp_path / "copy"
    mine = Allocations(host).claim(folder, [])
    Allocations(host).release(mine.id)
    shutil.copytree(folder, copy)
    assert Allocations(host).claim(copy, []).id == mine.id
    with pytest.raises(EngineUnavailable, match="or the other way round"):
        Allocations(host).claim(folder, [])


def test_a_damaged_file_is_named_and_not_taken_for_none(tmp_path: Path, host: Path) -> None:
    folder = data_dir(tmp_path, "one")
    first = Allocations(host).claim(folder, [])
    for file in (host / "allocations.json", folder / "instance.json"):
        whole = file.read_text()
        file.write_text("")
        with pytest.raises(EngineUnavailable, match=f"{file} is damaged"):
            Allocations(host).claim(folder, [])
        file.write_text(whole)
    assert Allocations(host).claim(folder, []) == first


def test_a_damaged_memory_stops_no_other_service_and_keeps_what_it_has(tmp_path: Path, host: Path) -> None:
    damaged, folder = data_dir(tmp_path, "damaged"), data_dir(tmp_path, "other")
    theirs = Allocations(host).claim(damaged, [])
    (damaged / "instance.json").write_text("")
    mine = Allocations(host).claim(folder, [])
    assert not set(mine.blocks) & set(theirs.blocks)
    assert theirs in Allocations(host).known()


def test_host_without_a_free_private_network_is_reported() -> None:
    everything = [IPv4Network(n) for n in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16")]
    assert free_subnet("0123abcd", everything).subnet_of(IPv4Network("198.18.0.0/15"))
    with pytest.raises(NoCapacity):
        free_subnet("0123abcd", [*everything, IPv4Network("198.18.0.0/15")])


def test_routes_are_read_as_the_kernel_prints_them() -> None:
    assert parse_routes(ROUTES) == [IPv4Network("0.0.0.0/0"), IPv4Network("192.0.2.0/24")]


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


def test_a_slot_is_given_back_by_whom_it_belongs_to_only() -> None:
    slots = Slots((0,), tuple)
    slot = slots.take("of-this-boot")
    slots.give_back(slot, "of-the-boot-before")
    assert slot not in [slots.take("another") for _ in range(255)]


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


def test_fields_of_a_later_version_are_kept_for_all_services_of_the_host(tmp_path: Path, host: Path) -> None:
    one, two = data_dir(tmp_path, "one"), data_dir(tmp_path, "two")
    first, _ = Allocations(host).claim(one, []), Allocations(host).claim(two, [])
    files = (host / "allocations.json", one / "instance.json")
    allocated, instance = (json.loads(file.read_text()) for file in files)
    files[0].write_text(json.dumps([{**entry, "zone": "b"} for entry in allocated]))
    files[1].write_text(json.dumps({**instance, "zone": "b"}))
    Allocations(host).grow(Allocations(host).claim(one, []))
    assert [entry["zone"] for entry in json.loads(files[0].read_text())] == ["b", "b"]
    assert json.loads(files[1].read_text()) == {"id": first.id, "subnet": first.subnet, "zone": "b"}
