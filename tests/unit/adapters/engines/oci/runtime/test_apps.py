"""An app's command line, environment and limits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from builderd.adapters.engines.oci.runtime.apps import app_env, app_root, make_run
from builderd.adapters.engines.oci.runtime.command import Runtime
from builderd.adapters.engines.oci.storage.disks import DISK_UID
from builderd.adapters.engines.oci.storage.quotas import NO_SPACE
from builderd.domain.ids import BuilderId, DiskId, SandboxId
from builderd.domain.resources import Resources
from builderd.domain.sandboxes import SandboxSpec
from builderd.domain.versions import Isolation

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
CRUN, RUNSC = (Runtime(name, f"/usr/bin/{name}", Path("/state")) for name in ("crun", "runsc"))
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
