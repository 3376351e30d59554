"""Layers as they are really made: by uv, in real sandboxes, of packages that attack whatever they can reach."""

from __future__ import annotations

import asyncio
import json
import secrets
import stat
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.integration.oci.package_index import Distribution, serve, source, wheel
from tests.integration.oci.stores import OPTIONS, quiet

from builderd.code.model import BundleFile, make_bundle
from builderd.core.errors import InstallFailed
from builderd.core.ids import TenantId
from builderd.dependencies.installers.installers import Installers, UvInstaller
from builderd.dependencies.installers.npm import NpmInstaller
from builderd.dependencies.model import BuildStep, Cache, LayerPlan
from builderd.engine.oci.engine.machine import Machine
from builderd.engine.oci.runtime.runner import Runner
from builderd.engine.oci.storage.layers import LAYER_UID, Bind, BuildRun
from builderd.engine.port import EngineOptions

pytestmark = pytest.mark.root

#: The service's own port at the gateway: the one place on the host that a sandbox may reach.
INDEX_PORT = 18973
ALICE, MALLORY = TenantId("alice"), TenantId("mallory")


class Workshop:
    """A machine and its layers, with an index of these distributions."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.layers = machine.layers
        self.runner = Runner(machine.runs, machine.runtimes["standard"], machine.lowers())

    @property
    def cache(self) -> Path:
        return self.machine.store.root / "cache"

    def plan(self, requirements: str, index: str | None, tenant: TenantId = MALLORY) -> LayerPlan:
        bundle = make_bundle([BundleFile("requirements.txt", requirements.encode())])
        plan = UvInstaller("test", index).plan(bundle, self.machine.base.id, tenant)
        assert plan
        return plan

    async def install(self, requirements: str, *distributions: Distribution, tenant: TenantId = MALLORY) -> LayerPlan:
        """Make the layer as the reconciler does: wheels first, else from source. The plan that worked."""
        with serve(self.machine.addresses.gateway, INDEX_PORT, *distributions) as index:
            plan = self.plan(requirements, index, tenant)
            outcome = await self.layers.build_layer(plan, quiet)
            if not outcome.ok:
                fallback = Installers(UvInstaller("test", index), NpmInstaller()).fallback(plan, outcome.output, tenant)
                assert fallback, outcome.output
                plan, outcome = fallback, await self.layers.build_layer(fallback, quiet)
            assert outcome.ok, outcome.output
            return plan

    def packages(self, plan: LayerPlan) -> Path:
        (found,) = self.layers.lower(plan.key).glob("venv/lib/python3*/site-packages")
        return found

    def report(self, plan: LayerPlan) -> Any:
        """Return the report of the attack by a source archive."""
        (file,) = self.packages(plan).glob("*_report.json")
        return json.loads(file.read_text())

    def contains(self, place: Path, text: bytes) -> bool:
        return any(text in path.read_bytes() for path in place.rglob("*") if path.is_file() and not path.is_symlink())

    async def run(self, plan: LayerPlan, *argv: str, told: list[str] | None = None) -> list[str]:
        """Return the output of a command that sees the layer as an app would; ``told`` collects it as it comes."""
        lines = [] if told is None else told
        venv = Bind(self.layers.lower(plan.key) / "venv", "/venv", read_only=True, owner=LAYER_UID)
        run = BuildRun("f" * 16, argv, {"PATH": "/usr/bin:/bin"}, "/", (venv,), False, 60)
        end = await self.runner.run_build(run, lines.append)
        assert end.exit_code == 0, lines
        return lines

    def is_tidy(self) -> bool:
        return list(self.machine.store.builds.iterdir()) == [] and self.machine.runs.all() == []


@asynccontextmanager
async def opened_workshop(options: EngineOptions) -> AsyncIterator[Workshop]:
    machine = Machine(options)
    await machine.open(quiet)
    workshop = Workshop(machine)
    try:
        yield workshop
        tidy = workshop.is_tidy()
    finally:
        machine.runs.close()
        machine.launcher.close()
        machine.give_back()
    assert tidy


@pytest.fixture
async def workshop(tmp_path: Path) -> AsyncIterator[Workshop]:
    async with opened_workshop(EngineOptions(tmp_path / "data", INDEX_PORT, store=OPTIONS)) as opened:
        yield opened


HELLO = wheel("hello", {"hello.py": "GREETING = 'hello'\n", "hello_old.py": "print 'python 2'\n"})

#: Python executes such a line of a .pth file whenever it starts with the folder on its path.
HOSTILE_PTH = (
    "import os, sys; [open(place + '/MARK', 'w').write('MARKED') for place in "
    "(os.environ.get('MARK_DIR', '/nowhere'), '/build/store/cache', '/build/store/layer', sys.prefix) "
    "if os.access(place, os.W_OK)]\n"
)
EVIL_WHEEL = wheel("evilwheel", {"evil.pth": HOSTILE_PTH, "evilwheel.py": ""})


async def test_wheels_become_a_layer_that_an_app_can_import_from(workshop: Workshop) -> None:
    plan = await workshop.install("hello", HELLO)
    program = "import hello; print(hello.GREETING, hello.__file__)"
    assert await workshop.run(plan, "/venv/bin/python", "-c", program) == [
        f"hello /venv/lib/{workshop.packages(plan).parent.name}/site-packages/hello.py"
    ]


async def test_layer_has_bytecode_with_paths_of_the_app(workshop: Workshop) -> None:
    plan = await workshop.install("hello", HELLO)
    program = (
        "import hello, importlib.util as u, marshal; code = marshal.loads(open(hello.__cached__, 'rb').read()[16:]);"
        "print(code.co_filename == hello.__file__)"
    )
    assert await workshop.run(plan, "/venv/bin/python", "-B", "-c", program) == ["True"]
    assert await workshop.run(plan, "/venv/bin/python", "-B", "-v", "-c", "import hello") != []


async def test_a_layer_shares_its_blocks_with_the_cache(workshop: Workshop) -> None:
    large = wheel("large", {"large.py": "# " + "".join(f"{n:09}" for n in range(600_000))})
    plan = await workshop.install("large", large)
    quota = workshop.machine.store.quota
    workshop.machine.store.deferred_sync.sync()
    assert (workshop.packages(plan) / "large.py").stat().st_size > 5_000_000
    assert quota.used(quota.group(workshop.layers.lower(plan.key))) < 1_000_000


async def test_the_resolvers_words_come_through(workshop: Workshop) -> None:
    with serve(workshop.machine.addresses.gateway, INDEX_PORT, HELLO) as index:
        plan = workshop.plan("hello==2", index)
        outcome = await workshop.layers.build_layer(plan, quiet)
    assert outcome.exit_code == 1
    assert "there is no version of hello==2" in UvInstaller("test").explain(outcome.output)


async def test_the_file_of_a_hostile_wheel_would_run_wherever_python_starts_with_it(tmp_path: Path) -> None:
    """Prove the attack of the next test."""
    (tmp_path / "evil.pth").write_text(HOSTILE_PTH)
    program = f"import site; site.addsitedir({str(tmp_path)!r})"
    subprocess.run([sys.executable, "-c", program], env={"MARK_DIR": str(tmp_path)}, check=True)
    assert (tmp_path / "MARK").exists()


async def test_a_hostile_wheel_runs_nothing_while_its_layer_is_made(workshop: Workshop) -> None:
    plan = await workshop.install("evilwheel", EVIL_WHEEL)
    assert not plan.runs_foreign_code
    assert (workshop.packages(plan) / "evil.pth").read_text() == HOSTILE_PTH, "it is there, and waits"
    for place in (workshop.cache, workshop.machine.store.layers):
        assert not list(place.rglob("MARK"))


async def test_a_wheel_cannot_be_unpacked_outside_of_its_environment(workshop: Workshop) -> None:
    climbing = wheel("climbing", {"../../../../../../../cache/MARK": "MARKED", "climbing.py": ""})
    with serve(workshop.machine.addresses.gateway, INDEX_PORT, climbing) as index:
        outcome = await workshop.layers.build_layer(workshop.plan("climbing", index), quiet)
    assert outcome.ok, "what climbs is left out"
    assert not (workshop.cache / "MARK").exists()
    assert not list(workshop.machine.store.root.glob("MARK"))


ATTACK = """
import ctypes, errno, fcntl, os, pathlib

CACHE, LAYER = "/build/store/cache", "/build/store/layer"

def tried(what):
    try:
        return what() or "done"
    except OSError as error:
        return errno.errorcode.get(error.errno, str(error))

def poison():
    count = 0
    for path in pathlib.Path(CACHE).rglob("*.py"):
        path.write_text("raise SystemExit('POISON')")
        count += 1
    pathlib.Path(CACHE, "POISON").write_text("POISON")
    return count

def mount():
    libc = ctypes.CDLL(None, use_errno=True)
    return libc.mount(b"x", b"/mnt", b"tmpfs", 0, 0) and errno.errorcode[ctypes.get_errno()]

def attack():
    victim = next(pathlib.Path(CACHE).rglob("hello.py"))
    subvolume = bytearray(56) + b"free".ljust(4040, bytes(1))
    inside = os.open(LAYER, os.O_RDONLY)
    status = pathlib.Path("/proc/self/status").read_text()
    return {
        "link": tried(lambda: os.link(victim, LAYER + "/venv/linked")),
        "link into cache": tried(lambda: os.link(__file__, LAYER + "/venv/linked")),
        "rename": tried(lambda: os.rename(victim, LAYER + "/venv/moved")),
        "poisoned": poison(),
        "subvolume": tried(lambda: fcntl.ioctl(inside, 0x50009418, subvolume)),
        "input": tried(lambda: open("/build/input/requirements.txt", "w").close()),
        "uv": tried(lambda: open("/usr/local/bin/uv", "w").close()),
        "root": tried(lambda: open("/etc/passwd", "a").close()),
        "mount": mount(),
        "up": sorted(os.listdir("/build/store")),
        "run": [str(path) for path in pathlib.Path("/run").iterdir()],
        "mounts": [line.split()[4] for line in open("/proc/self/mountinfo") if " btrfs " in line],
        "uid": os.getuid(),
        "capabilities": [line.split()[1] for line in status.splitlines() if line.startswith("Cap")],
        "host uid": int(open("/proc/self/uid_map").read().split()[1]),
    }
"""


async def test_a_hostile_source_archive_reaches_its_own_layer_and_nothing_else(workshop: Workshop) -> None:
    victim = await workshop.install("hello", HELLO, tenant=ALICE)
    before = {path: path.read_bytes() for path in workshop.cache.rglob("*.py")}
    assert before
    plan = await workshop.install("evil\nhello", source("evil", ATTACK), HELLO)
    assert plan.runs_foreign_code
    report = workshop.report(plan)
    assert report["poisoned"] > 0, "it did write to the cache that it was shown"
    assert report["link"] == report["link into cache"] == report["rename"] == "EXDEV"
    assert report["subvolume"] == "ENOSYS"
    assert report["input"] == report["root"] == "EROFS"
    assert report["uv"] == "EROFS"
    assert report["mount"] == "EPERM"
    assert report["up"] == ["cache", "layer"]
    assert sorted(report["run"]) == ["/run/limits", "/run/lock"]
    assert set(report["capabilities"]) == {"0" * 16}
    assert (report["uid"], report["host uid"] > 65536) == (0, True)
    assert {path: path.read_bytes() for path in workshop.cache.rglob("*.py")} == before
    assert not workshop.contains(workshop.cache, b"POISON")
    assert (workshop.packages(victim) / "hello.py").read_text() == "GREETING = 'hello'\n"


async def test_hostile_build_output_stays_with_its_tenant(workshop: Workshop) -> None:
    await workshop.install("hello>=1", HELLO, tenant=ALICE)
    poisoned = await workshop.install("evil\nhello", source("evil", ATTACK), HELLO)
    others = await workshop.install("hello", HELLO, tenant=ALICE)
    assert others.key != poisoned.key
    assert await workshop.run(others, "/venv/bin/python", "-c", "import hello; print(hello.GREETING)") == ["hello"]
    with serve(workshop.machine.addresses.gateway, INDEX_PORT) as index:
        assert workshop.plan("evil\nhello", index, ALICE).key != poisoned.key


SLEEPY = "def attack():\n    import time\n    time.sleep(1000)\n"


def source_plan(workshop: Workshop, index: str) -> LayerPlan:
    plan = workshop.plan("sleepy", index)
    fallback = Installers(UvInstaller("test", index), NpmInstaller()).fallback(plan, ["no usable wheels"], MALLORY)
    assert fallback
    return fallback


async def test_a_build_that_is_cancelled_is_killed(workshop: Workshop) -> None:
    with serve(workshop.machine.addresses.gateway, INDEX_PORT, source("sleepy", SLEEPY)) as index:
        lines: list[str] = []
        build = asyncio.create_task(workshop.layers.build_layer(source_plan(workshop, index), lines.append))
        while not any("Building" in line and "sleepy" in line for line in lines):
            await asyncio.sleep(0.02)
        build.cancel()
        with pytest.raises(asyncio.CancelledError):
            await build
    assert workshop.is_tidy()


async def test_a_build_that_takes_too_long_is_killed_and_said_to_be_late(workshop: Workshop) -> None:
    with serve(workshop.machine.addresses.gateway, INDEX_PORT, source("sleepy", SLEEPY)) as index:
        plan = source_plan(workshop, index)
        hasty = replace(plan, steps=(replace(plan.steps[0], timeout_seconds=2),))
        outcome = await workshop.layers.build_layer(hasty, quiet)
    assert outcome.timed_out
    assert not outcome.ok
    assert not workshop.layers.has(plan.key)
    assert workshop.is_tidy()


#: What a package's script may do, and what it may not.
ROOT_SCRIPT = """\
install -D -m 4755 /bin/true /opt/made/rooted && ln /opt/made/rooted /opt/made/again && chown 33:33 /opt/made
rm /etc/debian_version && echo more >>/etc/passwd
for refused in 'mknod /opt/disk b 1 1' 'mount -t tmpfs x /mnt' 'chroot / true' 'unshare -U true' 'hostname x' \
  'echo 1 >/proc/sys/vm/drop_caches' 'chmod 777 /sys/fs'; do
  sh -c "$refused" 2>/dev/null && echo "did $refused" && exit 1
done
test ! -e /build/store/layer/venv
"""


async def test_a_step_that_changes_its_root_changes_the_layer_alone(workshop: Workshop) -> None:
    step = BuildStep("Changing", ("/bin/sh", "-ec", ROOT_SCRIPT), False, Cache.NONE, timeout_seconds=20)
    plan = LayerPlan("a" * 64, {}, (step,), False, changes_root=True)
    endless = replace(plan, key="b" * 64, steps=(replace(step, argv=("sleep", "60"), timeout_seconds=1),))
    assert (await workshop.layers.build_layer(endless, quiet)).timed_out
    outcome = await workshop.layers.build_layer(plan, quiet)
    assert outcome.ok, outcome.output
    made = workshop.layers.lower(plan.key)
    assert sorted(path.name for path in made.iterdir()) == ["etc", "opt"]
    assert sorted(path.name for path in (made / "etc").iterdir()) == ["debian_version", "passwd"]
    assert stat.S_ISCHR((made / "etc/debian_version").stat().st_mode), "marked as removed"
    assert [(made / "opt/made").stat().st_uid, (made / "opt/made/again").stat().st_uid] == [33, 0]
    assert oct((made / "opt/made/rooted").stat().st_mode) == "0o100755"
    with serve(workshop.machine.addresses.gateway, INDEX_PORT, HELLO) as index:
        above = replace(workshop.plan("hello", index), key="c" * 64, below=plan)
        assert (await workshop.layers.build_layer(above, quiet)).ok
    assert sorted(path.name for path in workshop.layers.lower(above.key).iterdir()) == ["etc", "opt", "venv"]


async def test_a_layer_is_not_collected_from_under_a_sandbox(workshop: Workshop) -> None:
    plan = await workshop.install("hello", HELLO)
    lines: list[str] = []
    program = "import time; print('up', flush=True); time.sleep(3); import hello"
    app = asyncio.create_task(workshop.run(plan, "/venv/bin/python", "-c", program, told=lines))
    while "up" not in lines:
        await asyncio.sleep(0.01)
    workshop.layers.collect((), 0)
    assert workshop.layers.has(plan.key)
    await app
    workshop.layers.collect((), 0)
    assert not workshop.layers.has(plan.key)


async def test_a_layer_ends_at_what_its_tenant_has_left(workshop: Workshop) -> None:
    """The quota counts what is cloned from the cache for the cache alone."""
    big = wheel("big", {f"big/{number}.bin": secrets.token_hex(500_000) for number in range(30)})
    with serve(workshop.machine.addresses.gateway, INDEX_PORT, big) as index:
        plan = replace(workshop.plan("big", index), tenant=MALLORY, limit_bytes=12 << 20, quota_bytes=1 << 29)
        with pytest.raises(
            InstallFailed, match=r"take 0\.03 GB, and 0\.01 GB is left of your limit .*of 0\.50 GB.*tenant\.layers"
        ):
            await workshop.layers.build_layer(plan, quiet)
        assert not workshop.layers.has(plan.key)
        assert (await workshop.layers.build_layer(replace(plan, limit_bytes=1 << 30), quiet)).ok
    stored = await workshop.layers.stored_layers()
    assert stored.layers[plan.key].tenant == MALLORY
    assert stored.layers[plan.key].bytes > 10_000_000
