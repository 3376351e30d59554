"""Sandboxes are killed for the size of their netlink buffers."""

from __future__ import annotations

from pathlib import Path

import pytest

from builderd.adapters.engines.oci.runtime import netlink_watch
from builderd.adapters.engines.oci.runtime.netlink_watch import MOST, NetlinkWatch, netlink_bytes
from builderd.linux.processes import Process

HEADER = "sk               Eth Pid        Groups   Rmem     Wmem     Dump  Locks    Drops    Inode\n"
ROW = "0000000000000000 0   {pid}         00000000 {rmem}        0        0     2        0        4711\n"


def make_proc(root: Path, pid: int, *held: int, namespace: str = "net:[2]") -> None:
    """A /proc with one process whose netlink sockets hold so much, beside one of the host."""
    for name, link in (("self", "net:[1]"), (str(pid), namespace)):
        (root / name / "ns").mkdir(parents=True)
        (root / name / "ns/net").symlink_to(link)
    (root / str(pid) / "net").mkdir()
    rows = (ROW.format(pid=pid, rmem=rmem) for rmem in held)
    (root / str(pid) / "net/netlink").write_text(HEADER + "".join(rows))


def test_the_receive_buffers_of_all_sockets_are_added_up(tmp_path: Path) -> None:
    make_proc(tmp_path, 7, 0, 1000, 234)

    assert netlink_bytes(7, tmp_path) == 1234


def test_the_host_s_own_sockets_and_ended_processes_do_not_count(tmp_path: Path) -> None:
    make_proc(tmp_path, 7, 1000, namespace="net:[1]")

    assert netlink_bytes(7, tmp_path) == 0
    assert netlink_bytes(8, tmp_path) == 0


def test_only_a_living_sandbox_above_the_limit_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    held = {1: MOST, 2: MOST + 1, 3: MOST + 1}
    killed: list[str] = []
    monkeypatch.setattr(netlink_watch, "netlink_bytes", lambda pid: held[pid])
    monkeypatch.setattr(Process, "alive", property(lambda self: self.pid != 3))

    processes = [("modest", Process(1, 0)), ("greedy", Process(2, 0)), ("gone", Process(3, 0))]
    NetlinkWatch(lambda: processes, killed.append).check(processes)

    assert killed == ["greedy"]


def test_a_sandbox_that_does_not_die_keeps_no_other_from_being_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    killed: list[str] = []

    def kill(name: str) -> None:
        killed.append(name)
        raise TimeoutError("processes {2} do not die")

    monkeypatch.setattr(netlink_watch, "netlink_bytes", lambda pid: MOST + 1)
    monkeypatch.setattr(Process, "alive", property(lambda self: True))

    NetlinkWatch(list, kill).check([("first", Process(1, 0)), ("second", Process(2, 0))])

    assert killed == ["first", "second"]
