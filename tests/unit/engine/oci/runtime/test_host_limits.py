"""Kernel limits of the host are raised for all sandboxes, and never lowered."""

from __future__ import annotations

from pathlib import Path

import pytest

from builderd.engine.oci.network.allocations import MAX_SLOTS
from builderd.engine.oci.runtime import host_limits
from builderd.engine.oci.runtime.host_limits import (
    LEAST,
    MOST,
    SOCKET_POOLS,
    NetlinkWatch,
    netlink_bytes,
    raise_host_limits,
    raise_socket_pools,
    socket_pool,
)
from builderd.engine.oci.runtime.launcher import INOTIFY
from builderd.linux.processes import Process


def test_each_sandbox_can_have_its_own() -> None:
    assert LEAST["fs/inotify/max_user_instances"] > MAX_SLOTS * INOTIFY["max_inotify_instances"]
    assert LEAST["fs/inotify/max_user_watches"] > MAX_SLOTS * INOTIFY["max_inotify_watches"]
    assert LEAST["net/ipv4/neigh/default/gc_thresh3"] > 2 * MAX_SLOTS


def test_lower_host_limits_are_raised_and_higher_ones_kept(tmp_path: Path) -> None:
    few, many = tmp_path / "few", tmp_path / "many"
    few.write_text("128\n")
    many.write_text("65536\n")
    for _ in range(2):
        raise_host_limits(tmp_path, {"few": 8192, "many": 8192})
        assert (few.read_text(), many.read_text()) == ("8192", "65536\n")


def test_the_pools_of_socket_buffers_are_raised_to_half_of_the_memory(tmp_path: Path) -> None:
    tcp, udp = (tmp_path / name for name in SOCKET_POOLS)
    tcp.parent.mkdir(parents=True)
    tcp.write_text("287901\t383868\t575802\n")
    udp.write_text("1\t2\t9000000\n")
    for _ in range(2):
        raise_socket_pools(24 << 30, tmp_path)
    assert socket_pool(SOCKET_POOLS[0], tmp_path) == 12 << 30
    low, pressure, most = (int(number) for number in tcp.read_text().split())
    assert low < pressure < most
    assert udp.read_text() == "1\t2\t9000000\n"


HEADER = "sk               Eth Pid        Groups   Rmem     Wmem     Dump  Locks    Drops    Inode\n"
ROW = "0000000000000000 0   {pid}         00000000 {rmem}        0        0     2        0        4711\n"


def make_proc(root: Path, pid: int, *used: int, namespace: str = "net:[2]") -> None:
    """A /proc with one process whose netlink sockets keep so much, beside one of the host."""
    for name, link in (("self", "net:[1]"), (str(pid), namespace)):
        (root / name / "ns").mkdir(parents=True)
        (root / name / "ns/net").symlink_to(link)
    (root / str(pid) / "net").mkdir()
    rows = (ROW.format(pid=pid, rmem=rmem) for rmem in used)
    (root / str(pid) / "net/netlink").write_text(HEADER + "".join(rows))


def test_the_receive_buffers_of_all_sockets_are_added_up(tmp_path: Path) -> None:
    make_proc(tmp_path, 7, 0, 1000, 234)

    assert netlink_bytes(7, tmp_path) == 1234


def test_the_host_s_own_sockets_and_ended_processes_do_not_count(tmp_path: Path) -> None:
    make_proc(tmp_path, 7, 1000, namespace="net:[1]")

    assert netlink_bytes(7, tmp_path) == 0
    assert netlink_bytes(8, tmp_path) == 0


def test_only_a_living_sandbox_above_the_limit_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    used = {1: MOST, 2: MOST + 1, 3: MOST + 1}
    killed: list[str] = []
    monkeypatch.setattr(host_limits, "netlink_bytes", lambda pid: used[pid])
    monkeypatch.setattr(Process, "alive", property(lambda self: self.pid != 3))

    processes = [("modest", Process(1, 0)), ("greedy", Process(2, 0)), ("gone", Process(3, 0))]
    NetlinkWatch(lambda: processes, killed.append).check(processes)

    assert killed == ["greedy"]


def test_a_sandbox_that_does_not_die_keeps_no_other_from_being_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    killed: list[str] = []

    def kill(name: str) -> None:
        killed.append(name)
        raise TimeoutError("processes {2} do not die")

    monkeypatch.setattr(host_limits, "netlink_bytes", lambda pid: MOST + 1)
    monkeypatch.setattr(Process, "alive", property(lambda self: True))

    NetlinkWatch(list, kill).check([("first", Process(1, 0)), ("second", Process(2, 0))])

    assert killed == ["first", "second"]
