"""The OCI configuration: what confines a sandbox is in it."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from builderd.adapters.engines.oci.runtime import runtime_commands
from builderd.adapters.engines.oci.runtime.bundle import (
    LEAST_SHARES,
    make_config,
    make_process,
)
from builderd.adapters.engines.oci.runtime.creation import SECRETS, make_secrets_target, write_secret_files
from builderd.adapters.engines.oci.runtime.run import (
    Root,
    Run,
    app_env,
    app_root,
    make_mounts,
    make_run,
    mount_points,
)
from builderd.adapters.engines.oci.runtime.runtime_commands import Runtime
from builderd.adapters.engines.oci.storage.disks import DISK_UID
from builderd.adapters.engines.oci.storage.layers import Bind
from builderd.adapters.engines.oci.storage.quotas import NO_SPACE
from builderd.domain.ids import BuilderId, DiskId, SandboxId
from builderd.domain.resources import Resources
from builderd.domain.sandboxes import SandboxSpec
from builderd.domain.versions import Isolation
from builderd.linux.syscalls import MOUNT_ATTR_NODEV, MOUNT_ATTR_NOSUID, MOUNT_ATTR_RDONLY

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
BINDS = (Bind(Path("/disk/app"), "/app", read_only=False, owner=None), Bind(Path("/tool"), "/t", True, None))


def test_the_program_has_no_capability_and_no_way_to_one() -> None:
    process = CONFIG["process"]
    assert process["noNewPrivileges"] is True
    assert set(process["capabilities"]) == {"bounding", "effective", "permitted", "inheritable", "ambient"}
    assert not any(process["capabilities"].values())
    assert process["user"] == {"uid": 1000, "gid": 1000}
    assert CONFIG["linux"]["seccomp"] == {"defaultAction": "SCMP_ACT_ERRNO"}


def test_config_has_own_namespaces_and_ids() -> None:
    kinds = {namespace["type"] for namespace in CONFIG["linux"]["namespaces"]}
    assert kinds == {"pid", "ipc", "uts", "mount", "user", "cgroup", "network"}
    assert not any("path" in namespace for namespace in CONFIG["linux"]["namespaces"])
    ids = [{"containerID": 0, "hostID": 0x6001_0000, "size": 65536}]
    assert CONFIG["linux"]["uidMappings"] == CONFIG["linux"]["gidMappings"] == ids


@pytest.mark.parametrize(("cpu", "weight", "shares"), [(2, 1 / 16, 128), (0.5, 1.0, 512), (0.1, 0.001, LEAST_SHARES)])
def test_its_part_where_cpus_are_short_follows_from_its_weight(cpu: float, weight: float, shares: int) -> None:
    config = config_of(replace(RUN, cpu=cpu, cpu_weight=weight))
    assert config["linux"]["resources"]["cpu"] == {"quota": int(cpu * 100_000), "period": 100_000, "shares": shares}


def test_it_is_limited() -> None:
    resources = CONFIG["linux"]["resources"]
    assert resources["cpu"] == {"quota": 50_000, "period": 100_000, "shares": 512}
    assert resources["memory"] == {"limit": 1 << 28, "swap": 1 << 28}
    assert resources["pids"] == {"limit": 512}
    assert resources["devices"] == [{"allow": False, "access": "rwm"}]
    assert {"type": "RLIMIT_CORE", "hard": 0, "soft": 0} in CONFIG["process"]["rlimits"]


def test_the_kernel_is_not_shown() -> None:
    destinations = [mount["destination"] for mount in CONFIG["mounts"]]
    assert destinations == ["/proc", "/dev", "/dev/pts", "/dev/shm"]
    assert "/proc/sys" in CONFIG["linux"]["readonlyPaths"]
    masked = set(CONFIG["linux"]["maskedPaths"])
    assert {"/proc/kcore", "/proc/keys", "/proc/timer_list", "/proc/cmdline", "/proc/partitions", "/proc/fs"} <= masked
    assert not masked & {f"/proc/{name}" for name in ("cpuinfo", "loadavg", "meminfo", "stat", "uptime", "vmstat")}


def test_a_folder_that_others_change_is_a_mount_of_its_own() -> None:
    config = config_of(replace(RUN, runtime=replace(RUN.runtime, name="runsc"), root=replace(RUN.root, binds=BINDS)))
    assert config["mounts"][-1] == {
        "destination": "/app",
        "type": "bind",
        "source": "/bundle/root/app",
        "options": ["rbind", "rw", "nosuid", "nodev"],
    }


def test_read_only_root_is_in_the_config() -> None:
    assert CONFIG["root"] == {"path": "/bundle/root", "readonly": False}
    assert config_of(replace(RUN, root=Root((Path("/base"),))))["root"]["readonly"] is True


def test_the_environment_keeps_its_values_whole() -> None:
    assert make_process(["true"], RUN.env, 0, 10)["env"] == ["HOME=/app", "GREETING=a=b"]


def test_own_files_of_proc_are_mounted_read_only() -> None:
    mounts = config_of(replace(RUN, owner="builder"))["mounts"][-4:]
    assert [(mount["source"], mount["destination"]) for mount in mounts] == [
        *((f"/bundle/proc/{name}", f"/proc/{name}") for name in ("cpuinfo", "meminfo", "stat")),
        ("/bundle/proc/disk", "/run/limits/disk"),
    ]
    assert all({"bind", "ro", "nosuid", "nodev", "noexec"} == set(mount["options"]) for mount in mounts)


CRUN, RUNSC = (Runtime(name, f"/usr/bin/{name}", Path("/state")) for name in ("crun", "runsc"))


def test_gvisor_writes_through_to_the_disk_and_has_a_network_of_its_own() -> None:
    assert runtime_commands.start(RUNSC, "ab")[:4] == [
        "/usr/bin/runsc",
        "--root=/state",
        "--overlay2=none",
        "--network=sandbox",
    ]
    assert runtime_commands.start(CRUN, "ab") == ["/usr/bin/crun", "--root=/state", "start", "ab"]


def test_the_shim_hands_the_runtime_s_options_on_one_by_one() -> None:
    argv = runtime_commands.shim(RUNSC, "ab", Path("/b"), Path("/r"), Path("/exits"))
    handed = [argv[i + 1] for i, word in enumerate(argv) if word == "--runtime-arg"]
    assert handed == list(RUNSC.options)
    assert argv[argv.index("--exit-dir") + 1] == "/exits"


def test_a_sandbox_is_deleted_by_force_and_killed_by_name() -> None:
    assert runtime_commands.delete(CRUN, "ab")[-3:] == ["delete", "--force", "ab"]
    assert runtime_commands.kill(CRUN, "ab", "TERM")[-3:] == ["kill", "ab", "TERM"]


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
    assert app_env(replace(SPEC, env={"OMP_NUM_THREADS": "8"}), "")["OMP_NUM_THREADS"] == "8"


def test_python_keeps_its_bytecode_where_the_layer_has_none() -> None:
    folders = (Path("/scratch"), Path("/disk/app"), Path("/disk/home"))
    root = app_root((Path("/base"),), *folders, lacks_bytecode=True)
    assert root.writable == ("/pycache",)
    assert make_run(SPEC, CRUN, root, NO_SPACE, Path("/log"), 10, "").env["PYTHONPYCACHEPREFIX"] == "/pycache"
    assert "PYTHONPYCACHEPREFIX" not in make_run(SPEC, CRUN, ROOT, NO_SPACE, Path("/log"), 10, "").env


def test_only_app_and_home_persist() -> None:
    binds = [(bind.source, bind.target, bind.owner, bind.read_only) for bind in ROOT.binds]
    assert binds == [
        (Path("/disk/app"), "/app", DISK_UID, False),
        (Path("/disk/home"), "/home/app", DISK_UID, False),
    ]
    assert ROOT.scratch == Path("/scratch")


BUNDLE, STORE = Path("/run/x"), Path("/store")
APP = Bind(Path("/store/disks/1/app"), "/app", read_only=False, owner=5000)
TOOL = Bind(Path("/usr/bin/tool"), "/tool", read_only=True, owner=None)
STACKED = Root((Path("/layer"), Path("/base")), (APP, TOOL), Path("/store/scratch/1"))


def test_layers_are_bound_read_only_and_shown_as_the_sandbox_s_own() -> None:
    mounts = make_mounts(STACKED, BUNDLE, STORE)
    for mount, source in zip(mounts, ("/layer", "/base"), strict=False):
        assert (mount["kind"], mount["source"], mount["owner"]) == ("bind", source, 0)
        assert mount["attributes"] == MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV


def test_the_overlay_has_the_topmost_layer_first() -> None:
    overlay = make_mounts(STACKED, BUNDLE, STORE)[3]
    assert overlay["target"] == "/run/x/root"
    assert overlay["data"].startswith("lowerdir=lower0:lower1,upperdir=scratch/upper,workdir=scratch/work,")


def test_without_scratch_it_is_read_only() -> None:
    root = Root((Path("/layer"), Path("/base")))
    assert make_mounts(root, BUNDLE, STORE)[2]["data"] == "lowerdir=lower0:lower1"


def test_the_disk_is_bound_into_the_root_and_the_store_let_go_of_last() -> None:
    *_, app, tool, last = make_mounts(STACKED, BUNDLE, STORE)
    assert (app["target"], app["owner"]) == ("/run/x/root/app", 5000)
    assert app["attributes"] == MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV
    assert tool["owner"] is None
    assert last == {"kind": "detach", "target": "/store"}


def test_mount_points_that_must_exist_before() -> None:
    assert mount_points(STACKED, BUNDLE) == [BUNDLE / name for name in ("root", "lower0", "lower1", "scratch")]


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


def test_secret_files_have_a_mount_point_in_the_root(tmp_path: Path) -> None:
    make_secrets_target(tmp_path, os.getuid())
    assert (tmp_path / "run/credentials").is_dir()
