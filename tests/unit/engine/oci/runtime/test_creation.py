"""The OCI configuration: what confines a sandbox is in it."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from builderd.core.ids import BuilderId, DiskId, SandboxId
from builderd.core.resources import Resources
from builderd.engine.oci.runtime import creation
from builderd.engine.oci.runtime.cgroups import Cgroups, GroupCounters
from builderd.engine.oci.runtime.creation import (
    DISK_FILE,
    OWN_PROC,
    PROC_FOLDER,
    SECRETS,
    ProcFiles,
    Uptime,
    make_config,
    make_cpuinfo,
    make_disk,
    make_meminfo,
    make_stat,
    write_first,
    write_secret_files,
)
from builderd.engine.oci.runtime.launching import Runtime
from builderd.engine.oci.runtime.records import Record
from builderd.engine.oci.runtime.run import Root, Run, app_env, app_root, make_run
from builderd.engine.oci.storage.quotas import NO_SPACE, DiskSpace
from builderd.linux.processes import boot_id
from builderd.sandboxes.model import SandboxSpec
from builderd.versions.model import Isolation

RUN = Run(
    id="ab",
    owner="",
    disk="",
    runtime=Runtime("crun", "/usr/bin/crun", Path("/state")),
    root=Root((Path("/base"),), scratch=Path("/scratch")),
    argv=["/usr/bin/tini", "--", "/bin/sh", "-c", "run"],
    env={"HOME": "/app", "GREETING": "a=b"},
    cwd="/app",
    hostname="shop",
    port=8000,
    user=1000,
    cpu=0.5,
    memory_bytes=1 << 28,
    pids=512,
    egress=True,
    log=Path("/log"),
    log_limit=1000,
    tmpfs={"/dev/shm": 4096},
)


def config_of(run: Run = RUN) -> dict[str, Any]:
    seccomp = {"defaultAction": "SCMP_ACT_ERRNO"}
    return make_config(run, Path("/bundle"), "/builderd-x/1", 0x6001_0000, seccomp, 1024)


CONFIG = config_of()


def test_it_is_limited() -> None:
    resources = CONFIG["linux"]["resources"]
    assert resources["cpu"] == {"quota": 50_000, "period": 100_000, "shares": 512}
    assert resources["memory"] == {"limit": 1 << 28, "swap": 1 << 28}
    assert resources["pids"] == {"limit": 512}
    assert resources["devices"] == [{"allow": False, "access": "rwm"}]
    assert {"type": "RLIMIT_CORE", "hard": 0, "soft": 0} in CONFIG["process"]["rlimits"]


CRUN, RUNSC = (Runtime(name, f"/usr/bin/{name}", Path("/state")) for name in ("crun", "runsc"))


SPEC = SandboxSpec(
    id=SandboxId("ab"),
    builder_id=BuilderId("b"),
    disk=DiskId("d"),
    hostname="shop",
    entrypoint="python3 main.py; echo 'done'",
    port=8000,
    env={"GREETING": "hello"},
    resources=Resources(cpu=2, memory=0.5, disk=1),
    isolation=Isolation.STANDARD,
)
ROOT = app_root((Path("/base"),), Path("/scratch"), Path("/disk/app"), Path("/disk/home"))


def test_the_entrypoint_is_one_word_for_the_shell_under_an_init() -> None:
    run = make_run(SPEC, CRUN, ROOT, NO_SPACE, Path("/log"), 10, "http://gw:1")
    script = "trap 'exit 143' TERM\npython3 main.py; echo 'done'"
    assert run.argv == ["/usr/bin/tini", "-g", "--", "/bin/sh", "-c", script]
    assert (run.user, run.cwd, run.cpu, run.memory_bytes) == (1000, "/app", 2, 1 << 29)


@pytest.mark.parametrize(("runtime", "pids"), [(CRUN, 512), (RUNSC, 712)])
def test_gvisor_s_own_threads_come_on_top(runtime: Runtime, pids: int) -> None:
    assert make_run(SPEC, runtime, ROOT, NO_SPACE, Path("/log"), 10, "").pids == pids


def test_the_layer_s_programs_come_first() -> None:
    env = app_env(replace(SPEC, layer_key="0" * 64), "http://gw:1")
    assert env["PATH"].startswith("/venv/bin:")
    assert env["VIRTUAL_ENV"] == "/venv"
    assert "VIRTUAL_ENV" not in app_env(SPEC, "")


def test_the_app_s_own_words_win_but_for_the_platform_s_address() -> None:
    env = app_env(replace(SPEC, env={"HOME": "/elsewhere", "BUILDERD_URL": "http://evil"}), "http://gw:1")
    assert env["HOME"] == "/elsewhere"
    assert env["BUILDERD_URL"] == "http://gw:1"


@pytest.mark.parametrize(("cpu", "shown"), [(0.25, "1"), (1, "1"), (1.5, "2"), (4, "4")])
def test_programs_learn_the_number_of_processors(cpu: float, shown: str) -> None:
    env = app_env(replace(SPEC, resources=replace(SPEC.resources, cpu=cpu)), "")
    assert [env[name] for name in ("OMP_NUM_THREADS", "PYTHON_CPU_COUNT", "GOMAXPROCS")] == [shown] * 3
    assert env["NODE_OPTIONS"] == f"--max-old-space-size={SPEC.resources.memory_bytes // 2_097_152}"
    assert app_env(replace(SPEC, env={"OMP_NUM_THREADS": "8"}), "")["OMP_NUM_THREADS"] == "8"


BUNDLE, STORE = Path("/run/x"), Path("/store")


def test_the_app_alone_may_read_them(tmp_path: Path) -> None:
    write_secret_files(tmp_path, {"zoho/API_KEY": "secret", "zoho/B": "", "aws/API_KEY": "other"}, os.getuid())

    top = tmp_path / SECRETS
    modes = {str(path.relative_to(top)): path.stat().st_mode & 0o777 for path in top.rglob("*")}
    assert modes == {"zoho": 0o500, "aws": 0o500, "zoho/API_KEY": 0o400, "zoho/B": 0o400, "aws/API_KEY": 0o400}
    assert (top / "zoho/API_KEY").read_text() == "secret"


@pytest.mark.parametrize("name", ["/etc/x", "../x", "a/../b", "a", "a/b/c"])
def test_no_path_leads_elsewhere(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="<credential>/<variable>"):
        write_secret_files(tmp_path, {name: "secret"}, os.getuid())


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
        creation.rewrite(file, "overwritten")
    assert victim.read_text() == "precious"
