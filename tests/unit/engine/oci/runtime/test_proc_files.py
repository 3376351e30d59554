"""A sandbox's own files of ``/proc``, on folders that look like control groups of both versions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from builderd.engine.oci.runtime import proc_files
from builderd.engine.oci.runtime.bundle import DISK_FILE, OWN_PROC, PROC_FOLDER
from builderd.engine.oci.runtime.cgroups import Cgroups, GroupCounters
from builderd.engine.oci.runtime.proc_files import (
    ProcFiles,
    Uptime,
    make_cpuinfo,
    make_disk,
    make_meminfo,
    make_stat,
    write_first,
)
from builderd.engine.oci.runtime.records import Record
from builderd.engine.oci.storage.quotas import NO_SPACE, DiskSpace
from builderd.linux.processes import boot_id

MB = 1 << 20
USED = GroupCounters(100 * MB, 5 * MB, 30 * MB, 20 * MB, 12.5, 2.5)
HOST = "\n\n".join(f"processor\t: {number}\nmodel name\t: any\n" for number in range(4)) + "\n"
SPACE = DiskSpace(3000 * MB, 5 * MB, 256 * MB, MB)
RECORD = Record("ab", "owner", "disk", "crun", 1, "10.0.0.2", 80, boot_id(), started_at=1.0)
V1 = {
    "cpu/cpu.cfs_quota_us": "150000",
    "memory/memory.limit_in_bytes": str(512 * MB),
    "memory/memory.usage_in_bytes": str(100 * MB),
    "memory/memory.stat": f"total_shmem {5 * MB}\ntotal_active_file {30 * MB}\ntotal_inactive_file {20 * MB}",
    "cpuacct/cpuacct.stat": "user 1250\nsystem 250",
}
V2 = {
    "cpu.max": "150000 100000",
    "memory.max": str(512 * MB),
    "memory.current": str(100 * MB),
    "memory.stat": f"shmem {5 * MB}\nactive_file {30 * MB}\ninactive_file {20 * MB}",
    "cpu.stat": "usage_usec 15000000\nuser_usec 12500000\nsystem_usec 2500000",
}


def meminfo(text: str) -> dict[str, int]:
    """Values in MiB."""
    return {name: int(rest.split()[0]) // 1024 for name, _, rest in (line.partition(":") for line in text.splitlines())}


def make_groups(root: Path, version: int) -> Cgroups:
    root.mkdir()
    if version == 2:
        (root / "cgroup.controllers").touch()
    for path, text in (V1 if version == 1 else V2).items():
        controller, _, name = path.rpartition("/")
        folder = root / controller / "builderd-x/ab"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return Cgroups("x", root)


@pytest.mark.parametrize("used", [600 * MB, 512 * MB, 0])
def test_memory_shown_stays_within_the_limit_whatever_the_counters_say(used: int) -> None:
    shown = meminfo(make_meminfo(512 * MB, replace(USED, memory=used)))
    assert 0 <= shown["MemFree"] <= shown["MemAvailable"] <= shown["MemTotal"]


@pytest.mark.parametrize(("cpus", "shown"), [(1, 1), (3, 3), (9, 4)])
def test_as_many_processors_are_shown_as_the_limit_has(cpus: int, shown: int) -> None:
    assert make_cpuinfo(cpus, HOST).count("processor\t:") == shown


def test_cpu_time_is_the_sandboxes_own() -> None:
    lines = make_stat(2, USED, Uptime(1_700_000_000, 100.0)).splitlines()
    assert lines[0].split() == ["cpu", "1250", "0", "250", "18500", *["0"] * 6]
    assert [line.split()[0] for line in lines[1:3]] == ["cpu0", "cpu1"]
    assert "btime 1700000000" in lines


def test_texts_keep_their_length() -> None:
    unused, used = GroupCounters(), replace(USED, user_seconds=123_456.0)
    assert len(make_meminfo(512 * MB, unused)) == len(make_meminfo(512 * MB, used))
    assert len(make_disk(NO_SPACE)) == len(make_disk(SPACE))
    assert len(make_stat(2, unused, Uptime(1, 1e6))) == len(make_stat(2, used, Uptime(1, 1e6)))


@pytest.mark.parametrize("version", [1, 2])
def test_running_sandboxes_are_updated_in_place(tmp_path: Path, version: int) -> None:
    groups = make_groups(tmp_path / "groups", version)
    write_first(tmp_path, 1.5, 512 * MB, NO_SPACE)
    folder = tmp_path / PROC_FOLDER
    inodes = [(folder / name).stat().st_ino for name in (*OWN_PROC, DISK_FILE)]
    assert meminfo((folder / "meminfo").read_text())["MemFree"] == 512
    others = [replace(RECORD, started_at=None), replace(RECORD, frozen_at=2.0), replace(RECORD, boot="earlier")]
    files = ProcFiles(groups, lambda name: tmp_path, list, {"disk": SPACE}.get)
    files.update(others)
    assert meminfo((folder / "meminfo").read_text())["MemFree"] == 512
    files.update([replace(RECORD, id="gone"), RECORD])
    assert (folder / "meminfo").read_text() == make_meminfo(512 * MB, USED)
    assert (folder / "stat").read_text().split()[1] == "1250"
    assert (folder / "stat").read_text().count("cpu") == 3
    assert (folder / DISK_FILE).read_text() == make_disk(SPACE)
    assert [(folder / name).stat().st_ino for name in (*OWN_PROC, DISK_FILE)] == inodes


def test_a_link_in_place_of_a_file_is_not_followed(tmp_path: Path) -> None:
    write_first(tmp_path, 1, MB, NO_SPACE)
    victim = tmp_path / "victim"
    victim.write_text("precious")
    file = tmp_path / PROC_FOLDER / "meminfo"
    file.unlink()
    file.symlink_to(victim)
    with pytest.raises(OSError, match="symbolic links"):
        proc_files.rewrite(file, "overwritten")
    assert victim.read_text() == "precious"
