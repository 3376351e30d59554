"""The OCI configuration: what confines a sandbox is in it."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from builderd.core.ids import BuilderId, DiskId, SandboxId
from builderd.core.resources import Resources
from builderd.engine.oci.runtime.bundle import make_config
from builderd.engine.oci.runtime.creation import SECRETS, write_secret_files
from builderd.engine.oci.runtime.run import Root, Run, app_env, app_root, make_run
from builderd.engine.oci.runtime.runtime_commands import Runtime
from builderd.engine.oci.storage.quotas import NO_SPACE
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
