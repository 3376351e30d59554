"""Control groups of both versions, on folders that look like theirs, and kernel limits of the host."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from builderd.engine.oci.network.allocations import MAX_SLOTS
from builderd.engine.oci.runtime import cgroups, host_limits, runs
from builderd.engine.oci.runtime.cgroups import Cgroups
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


@pytest.fixture
def v1(tmp_path: Path) -> Path:
    for controller in ("cpu", "cpuacct", "memory", "pids", "freezer"):
        (tmp_path / controller / "builderd-x" / "ab").mkdir(parents=True)
    return tmp_path


@pytest.fixture
def v2(tmp_path: Path) -> Path:
    (tmp_path / "cgroup.controllers").write_text("cpu memory pids")
    (tmp_path / "cgroup.subtree_control").write_text("")
    (tmp_path / "builderd-x" / "ab").mkdir(parents=True)
    return tmp_path


def test_on_version_2_the_controllers_are_handed_down_outside_of_any_unit(v2: Path) -> None:
    groups = Cgroups("x", v2)
    assert groups.version == 2
    groups.open()
    assert (v2 / "cgroup.subtree_control").read_text() == "+cpu +memory +pids"
    assert (v2 / "builderd-x/cgroup.subtree_control").read_text() == "+cpu +memory +pids"


def test_the_shim_is_held_back_on_version_2(v2: Path) -> None:
    groups = Cgroups("x", v2)
    tasks = Path(groups.open_shim("ab"))
    groups.limit_shim("ab")
    assert tasks == v2 / "builderd-x/ab.shim/cgroup.procs"
    assert (tasks.parent / "cpu.max").read_text() == "20000 100000"


@pytest.mark.parametrize(("memory", "limit"), [(1 << 28, 1 << 26), (1 << 25, 1 << 24)])
def test_sockets_have_a_limit_where_memory_does_not_count_them(v1: Path, memory: int, limit: int) -> None:
    (v1 / "memory/memory.kmem.tcp.limit_in_bytes").touch()
    file = v1 / "memory/builderd-x/ab/memory.kmem.tcp.limit_in_bytes"
    file.touch()
    Cgroups("x", v1).limit_sockets("ab", memory)
    assert file.read_text() == str(limit)


def test_sockets_have_no_limit_of_their_own_on_version_2(v2: Path) -> None:
    Cgroups("x", v2).limit_sockets("ab", 1 << 28)
    assert not list((v2 / "builderd-x/ab").iterdir())


def test_usage_on_version_2(v2: Path) -> None:
    group = v2 / "builderd-x/ab"
    (group / "cpu.stat").write_text("usage_usec 1500000\nuser_usec 1\n")
    (group / "memory.current").write_text("5000\n")
    (group / "memory.stat").write_text("anon 10\ninactive_file 3000\n")
    (group / "pids.current").write_text("7\n")
    used = Cgroups("x", v2).usage("ab")
    assert used
    assert (used.cpu_seconds, used.memory_bytes, used.processes) == (1.5, 2000, 7)


def test_process_outside_of_sandboxes_is_not_moved(v1: Path) -> None:
    """Such a process was given the number of one that has ended."""
    with pytest.raises(ProcessLookupError):
        Cgroups("x", v1).enter_inner("ab", "exec-1", os.getpid())
    assert not (v1 / "pids/builderd-x/ab/exec-1").exists()


def test_version_2_tells_kills_for_the_host_from_those_at_the_limit(v2: Path) -> None:
    for own, kills, by_host in ((0, 0, False), (0, 1, True), (1, 1, False), (3, 1, False), (1, 2, True)):
        events = f"low 0\nhigh 0\nmax {own * 7}\noom {own}\noom_kill {kills}\noom_group_kill 0\n"
        (v2 / "builderd-x/ab/memory.events").write_text(events)
        assert Cgroups("x", v2).host_oom_kills("ab") is by_host
    assert not Cgroups("x", v2).host_oom_kills("gone")


def test_version_1_takes_a_kill_for_the_own_once_all_of_the_limit_was_used(v1: Path) -> None:
    memory = v1 / "memory/builderd-x/ab"
    (memory / "memory.limit_in_bytes").write_text(f"{128 << 20}\n")
    for most, kills, by_host in ((100, 0, False), (100, 1, True), (128, 1, False), (126, 1, False)):
        (memory / "memory.oom_control").write_text(f"oom_kill_disable 0\nunder_oom 0\noom_kill {kills}\n")
        (memory / "memory.max_usage_in_bytes").write_text(f"{most << 20}\n")
        assert Cgroups("x", v1).host_oom_kills("ab") is by_host
    assert not Cgroups("x", v1).host_oom_kills("gone")


@pytest.mark.parametrize(("both", "by_host"), [(100, True), (126, False), (128, False)])
def test_version_1_takes_a_kill_for_the_own_once_memory_and_swap_together_met_the_limit(
    v1: Path, both: int, by_host: bool
) -> None:
    """Memory in swap counts, and leaves the memory itself far from its limit."""
    memory = v1 / "memory/builderd-x/ab"
    (memory / "memory.oom_control").write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 1\n")
    for kind, most in (("memory", 60), ("memory.memsw", both)):
        (memory / f"{kind}.limit_in_bytes").write_text(f"{128 << 20}\n")
        (memory / f"{kind}.max_usage_in_bytes").write_text(f"{most << 20}\n")
    assert Cgroups("x", v1).host_oom_kills("ab") is by_host


def test_on_version_1_what_is_in_one_hierarchy_only_is_killed_as_well(
    v1: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    groups = Cgroups("x", v1)
    tasks = Path(groups.open_shim("ab")).with_name("cgroup.procs")
    tasks.write_text("17\n")
    killed: list[int] = []

    def kill(process: int, _: int) -> None:
        killed.append(process)
        tasks.unlink()

    monkeypatch.setattr(os, "kill", kill)
    groups.remove("ab.shim")
    assert killed == [17]
    assert not tasks.parent.exists()


def test_process_entering_a_removed_group_is_killed(v1: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = v1 / "pids/builderd-x/ab/cgroup.procs"
    tasks.touch()
    rounds = iter([lambda: None, tasks.unlink])
    groups = Cgroups("x", v1)
    monkeypatch.setattr(groups, "kill", lambda name: next(rounds)())
    groups.remove("ab")
    assert not list(v1.glob("*/builderd-x/ab"))


def test_a_group_that_is_gone_is_not_frozen(v1: Path, v2: Path) -> None:
    for root in (v1, v2):
        groups = Cgroups("x", root)
        groups.thaw("cd")
        groups.end_reclaim("cd")
        assert not groups.is_frozen("cd")
        assert not list(root.rglob("cd"))


@pytest.mark.parametrize(("moved", "reclaimed"), [(0, "4096"), (6000, "4000"), (10_000, "")])
def test_on_version_2_memory_may_be_swapped_while_it_is_frozen_only_and_not_beyond_its_limit(
    v2: Path, moved: int, reclaimed: str
) -> None:
    group = v2 / "builderd-x/ab"
    files = {"max": "10000\n", "current": "4096\n", "swap.current": f"{moved}\n", "swap.max": "", "reclaim": ""}
    for name, content in files.items():
        (group / f"memory.{name}").write_text(content)
    groups = Cgroups("x", v2)
    groups.reclaim("ab")
    assert ((group / "memory.swap.max").read_text(), (group / "memory.reclaim").read_text()) == ("10000", reclaimed)
    (group / "memory.swap.max").write_text("")
    groups.end_reclaim("ab")
    assert (group / "memory.swap.max").read_text() == "0"


@pytest.mark.parametrize("version", [1, 2])
def test_a_group_that_is_being_removed_is_as_one_that_is_gone(
    v1: Path, v2: Path, monkeypatch: pytest.MonkeyPatch, version: int
) -> None:
    """The runtime removes a group while it is killed: its files exist, and cannot be opened."""

    def going(file: Path, *args: object, **more: object) -> None:
        raise OSError(errno.ENODEV, "No such device", str(file))

    if version == 1:
        (v2 / "cgroup.controllers").unlink()
    groups = Cgroups("x", v1 if version == 1 else v2)
    found = iter([{12345678}, set()])
    monkeypatch.setattr(cgroups, "processes_below", lambda _: next(found, set()))
    monkeypatch.setattr(cgroups, "read_proc", lambda _: "0::/builderd-x/ab\n")
    monkeypatch.setattr(Path, "open", going)
    monkeypatch.setattr(os, "open", going)
    assert (groups.version, groups.usage("ab"), groups.oom_kills("ab")) == (version, None, 0)
    assert not groups.is_frozen("ab")
    groups.thaw("ab")
    groups.kill("ab")
    with pytest.raises(FileNotFoundError):
        groups.enter_inner("ab", "c", 12345678)


@pytest.fixture
def group(tmp_path: Path) -> Path:
    (tmp_path / "inner").mkdir()
    (tmp_path / "memory.events").write_text("oom 1\noom_kill 3\nlocal max\n\n")
    return tmp_path


def test_a_group_s_file_is_never_created(group: Path) -> None:
    with pytest.raises(FileNotFoundError):
        cgroups.write(group / "freezer.state", "FROZEN")
    assert not (group / "freezer.state").exists()


HEADING = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n"


def test_a_kernel_that_knows_no_swap_has_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(runs, "_SWAPS", tmp_path / "swaps")
    assert not runs.swaps_to_zram()
    (tmp_path / "swaps").write_text(f"{HEADING}/dev/zram0 partition 4194300 0 100\n")
    assert runs.swaps_to_zram()


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
