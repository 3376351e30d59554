"""A layer is made once, whole or not at all, and by nothing that could reach another.

The runner here is a stand-in which runs a function on the folders that a sandbox would see; what a real sandbox keeps
a build from is tested with real ones.
"""

from __future__ import annotations

import asyncio
import errno
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from tests.integration.oci.stores import open_store

from builderd.core.errors import InstallFailed, MachineFault, NoCapacity, NotFound, machine_fault
from builderd.core.ids import DiskId
from builderd.dependencies.model import CACHE, INPUT, LAYER, BuildStep, Cache, LayerPlan
from builderd.engine.oci.storage import layers as module
from builderd.engine.oci.storage import layers as transcript
from builderd.engine.oci.storage.disks import Disks
from builderd.engine.oci.storage.layers import BuildExit, BuildRun, Layers, Output
from builderd.engine.oci.storage.store import Store
from builderd.engine.oci.storage.subvolumes import create_subvolume

pytestmark = pytest.mark.root

MB = 1 << 20
KEY, OTHER = "a" * 64, "b" * 64
UV = Path("/usr/bin/true")


def step(cache: Cache = Cache.SHARED, *argv: str) -> BuildStep:
    return BuildStep("Installing", argv or ("install",), network=True, cache=cache, env={"MINE": "1"})


def plan(key: str = KEY, *steps: BuildStep) -> LayerPlan:
    return LayerPlan(key, {"requirements.txt": b"flask\n", "more/a.txt": b"a"}, steps or (step(),), False)


class StandIn:
    """Runs ``action`` with the host's folder for each target; counts, and can be made to wait."""

    def __init__(self) -> None:
        self.runs: list[BuildRun] = []
        self.action: Callable[[dict[str, Path]], int] = install
        self.lines: list[str] = ["hello"]
        self.gate = asyncio.Event()
        self.gate.set()
        self.started = asyncio.Event()

    async def run_build(self, run: BuildRun, output: Output) -> BuildExit:
        self.runs.append(run)
        self.started.set()
        await self.gate.wait()
        for line in self.lines:
            output(line)
        return BuildExit(self.action({bind.target: bind.source for bind in run.binds}))


def install(seen: dict[str, Path]) -> int:
    (seen[LAYER] / "venv/lib").mkdir(parents=True)
    (seen[LAYER] / "venv/lib/flask.py").write_text("flask")
    return 0


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(tmp_path) as store:
        yield store


@pytest.fixture
def runner() -> StandIn:
    return StandIn()


@pytest.fixture
def layers(store: Store, runner: StandIn) -> Layers:
    layers = Layers(store, runner, {"/usr/local/bin/uv": UV})
    layers.open()
    return layers


def told() -> tuple[list[str], Callable[[str], None]]:
    lines: list[str] = []
    return lines, lines.append


def is_tidy(store: Store) -> bool:
    claims = [name for name in store.reservations._claims if name.startswith("build")]
    return list(store.builds.iterdir()) == [] and claims == []


async def test_the_build_sees_its_input_its_layer_and_the_cache_each_as_a_mount_of_its_own(
    layers: Layers, runner: StandIn, store: Store
) -> None:
    contents: dict[str, bytes] = {}

    def look(seen: dict[str, Path]) -> int:
        contents.update({name: (seen[INPUT] / name).read_bytes() for name in ("requirements.txt", "more/a.txt")})
        return install(seen)

    runner.action = look
    await layers.build_layer(plan(), print)
    assert contents == {"requirements.txt": b"flask\n", "more/a.txt": b"a"}
    (run,) = runner.runs
    binds = {bind.target: bind for bind in run.binds}
    assert set(binds) == {INPUT, LAYER, CACHE, "/usr/local/bin/uv"}
    assert [target for target, bind in binds.items() if not bind.read_only] == [LAYER, CACHE]
    assert binds[CACHE].source == store.root / "cache"
    assert binds["/usr/local/bin/uv"].source == UV
    assert run.env["MINE"] == "1"
    assert run.network


async def test_failed_step_leaves_no_layer(layers: Layers, runner: StandIn, store: Store) -> None:
    def fail(seen: dict[str, Path]) -> int:
        install(seen)
        return 3

    runner.action, runner.lines = fail, ["error: no such package"]
    outcome = await layers.build_layer(plan(KEY, step(), step()), print)
    assert outcome.exit_code == 3
    assert outcome.output == ("error: no such package",)
    assert len(runner.runs) == 1, "the steps after it are not run"
    assert not layers.has(KEY)
    assert is_tidy(store)
    runner.action = install
    assert (await layers.build_layer(plan(), print)).ok


async def test_an_installer_that_is_killed_is_a_fault_of_the_machine(
    layers: Layers, runner: StandIn, store: Store
) -> None:
    runner.action = lambda _: module.KILLED
    with pytest.raises(MachineFault, match="the installer was killed"):
        await layers.build_layer(plan(), print)
    assert is_tidy(store)


async def test_a_step_that_fails_on_a_full_store_is_a_fault_of_the_machine(
    layers: Layers, runner: StandIn, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(store.reservations), "writable", lambda _: 1 * MB)
    runner.action = lambda _: 1
    with pytest.raises(NoCapacity, match="store for apps and layers is full"):
        await layers.build_layer(plan(), print)
    assert is_tidy(store)


@pytest.mark.parametrize("target", [LAYER, CACHE])
async def test_a_step_that_has_no_room_for_want_of_the_machines_is_a_fault_of_the_machine(
    layers: Layers, runner: StandIn, store: Store, monkeypatch: pytest.MonkeyPatch, target: str
) -> None:
    def fill(seen: dict[str, Path]) -> int:
        with suppress(OSError), (seen[target] / "file").open("wb", buffering=0) as file:
            for _ in range(40):
                file.write(os.urandom(MB))
                os.fsync(file.fileno())
        return 1

    claim_some = store.reservations.claim_some
    monkeypatch.setattr(store.reservations, "claim_some", lambda name, *_: claim_some(name, 20 * MB, 20 * MB))
    store.quota.limit(layers._cache.path, 20 * MB)
    runner.action = fill
    with pytest.raises((NoCapacity, MachineFault), match=r"machine's store has for it|cache of downloads is full"):
        await layers.build_layer(plan(), print)
    assert is_tidy(store)


async def test_cancelled_build_is_continued_by_a_waiter(layers: Layers, runner: StandIn, store: Store) -> None:
    runner.gate.clear()
    first = asyncio.create_task(layers.build_layer(plan(), print))
    await runner.started.wait()
    second = asyncio.create_task(layers.build_layer(plan(), print))
    await asyncio.sleep(0)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    assert not layers.has(KEY)
    runner.gate.set()
    outcome = await second
    assert outcome.ok
    assert not outcome.reused
    assert is_tidy(store)


async def test_a_build_that_is_cancelled_while_its_folder_is_made_leaves_nothing(
    layers: Layers, runner: StandIn, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def make_late(path: Path) -> None:
        begun.set()
        go_on.wait(10)
        create_subvolume(path)

    monkeypatch.setattr(module, "create_subvolume", make_late)
    build = asyncio.create_task(layers.build_layer(plan(), print))
    await asyncio.to_thread(begun.wait, 10)
    build.cancel()
    asyncio.get_running_loop().call_later(0.1, go_on.set)
    with pytest.raises(asyncio.CancelledError):
        await build
    await asyncio.sleep(0.1)
    assert is_tidy(store)


async def test_missing_layer_is_not_mounted(layers: Layers) -> None:
    for key in (KEY, "", "..", "../disks", "A" * 64, "a" * 63):
        assert not layers.has(key)
        with pytest.raises(NotFound):
            layers.lower(key)


def leave_more(seen: dict[str, Path]) -> int:
    (seen[LAYER] / "etc").mkdir()
    return install(seen)


def leave_a_link(seen: dict[str, Path]) -> int:
    (seen[LAYER] / "venv").symlink_to("/")
    return 0


def leave_a_name_that_is_no_text(seen: dict[str, Path]) -> int:
    os.mkdir(os.fsencode(seen[LAYER]) + b"/\xff")  # noqa: PTH102
    return install(seen)


@pytest.mark.parametrize(
    ("action", "why"),
    [
        (leave_more, "left etc beside"),
        (leave_a_name_that_is_no_text, "left \ufffd beside"),
        (leave_a_link, "made nothing"),
        (lambda seen: 0, "made nothing"),
    ],
)
async def test_a_layer_brings_an_environment_and_nothing_else(
    layers: Layers, runner: StandIn, action: Callable[[dict[str, Path]], int], why: str
) -> None:
    runner.action = action
    outcome = await layers.build_layer(plan(), print)
    assert outcome.exit_code == 1
    assert why in outcome.output[-1]
    assert not layers.has(KEY)


async def test_build_of_foreign_code_has_a_cache_that_shows_and_keeps_nothing_of_others(
    layers: Layers, runner: StandIn, store: Store
) -> None:
    shared = store.root / "cache/wheel"
    shared.write_text("good")
    seen_in_cache: list[list[str]] = []

    def poison(seen: dict[str, Path]) -> int:
        seen_in_cache.append([path.name for path in seen[CACHE].iterdir()])
        (seen[CACHE] / "wheel").write_text("evil")
        (seen[CACHE] / "more").write_text("evil")
        return install(seen)

    runner.action = poison
    for key in (KEY, OTHER):
        assert (await layers.build_layer(plan(key, step(Cache.SCRATCH)), print)).ok
    assert seen_in_cache == [[], []]
    assert shared.read_text() == "good"
    assert [path.name for path in (store.root / "cache").iterdir()] == ["wheel"]
    assert is_tidy(store)


async def test_a_build_takes_no_more_room_than_its_claim(
    layers: Layers, runner: StandIn, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MIN_LAYER", 20 * MB)
    monkeypatch.setattr(module, "MAX_LAYER", 20 * MB)
    failures: list[int | None] = []

    def fill(seen: dict[str, Path]) -> int:
        for target in (LAYER, CACHE):
            try:
                with (seen[target] / "file").open("wb", buffering=0) as file:
                    for _ in range(40):
                        file.write(os.urandom(MB))
                        os.fsync(file.fileno())
            except OSError as error:
                failures.append(error.errno)
        return 1

    runner.action = fill
    with pytest.raises(InstallFailed, match=r"more than 0\.02 GB, the most that a layer may have here"):
        await layers.build_layer(plan(KEY, step(Cache.SCRATCH)), print)
    assert failures == [errno.EDQUOT, errno.EDQUOT]
    assert is_tidy(store)


@pytest.mark.parametrize("written", [0, 12], ids=["nothing written", "half of the limit written"])
async def test_words_of_a_quota_alone_are_no_limit_but_the_limit_is_noted(
    layers: Layers, runner: StandIn, monkeypatch: pytest.MonkeyPatch, written: int
) -> None:
    """Print them without a full folder, as the test of a package may."""
    monkeypatch.setattr(module, "MIN_LAYER", 20 * MB)
    monkeypatch.setattr(module, "MAX_LAYER", 20 * MB)

    def fail(seen: dict[str, Path]) -> int:
        with (seen[LAYER] / "file").open("wb") as file:
            file.write(os.urandom(written * MB))
            os.fsync(file.fileno())
        return 1

    runner.action, runner.lines = fail, ["OSError: [Errno 122] Disk quota exceeded", "EDQUOT"]
    outcome = await layers.build_layer(replace(plan(), limit_bytes=20 * MB, quota_bytes=2048 * MB), print)
    assert not outcome.ok
    assert outcome.output[-3:-1] == ("OSError: [Errno 122] Disk quota exceeded", "EDQUOT")
    assert "note: if a limit ended it, then this:" in outcome.output[-1]
    assert "0.02 GB is left of your limit for layers of 2.00 GB" in outcome.output[-1]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
async def test_a_store_that_refuses_a_write_of_ours_is_no_capacity(
    layers: Layers, store: Store, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(path: Path) -> None:
        raise OSError(number, "refused", str(path))

    monkeypatch.setattr(module, "create_subvolume", refuse)
    with pytest.raises(NoCapacity, match=r"store for apps and layers is full\. Delete a builder") as refused:
        await layers.build_layer(plan(), print)
    assert refused.value.retry_after == 60
    assert is_tidy(store)


async def test_another_full_file_system_stays_a_fault_of_the_machine(
    layers: Layers, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> None:
        raise OSError(errno.ENOSPC, "refused", "/var/lib/elsewhere/record.json")

    monkeypatch.setattr(module, "create_subvolume", refuse)
    with pytest.raises(OSError, match="refused") as failed:
        await layers.build_layer(plan(), print)
    assert isinstance(machine_fault(failed.value), MachineFault)


async def test_while_layers_are_made_there_is_room_for_a_disk(layers: Layers, runner: StandIn, store: Store) -> None:
    runner.gate.clear()
    builds = [asyncio.create_task(layers.build_layer(plan(key, step(Cache.SCRATCH)), print)) for key in (KEY, OTHER)]
    async with asyncio.timeout(30):
        while len(runner.runs) < len(builds):
            await asyncio.sleep(0.01)
    disks = Disks(store)
    await asyncio.to_thread(disks.create, DiskId("beside"), 512 * MB)
    runner.gate.set()
    assert all(outcome.ok for outcome in await asyncio.gather(*builds))
    assert is_tidy(store)


async def test_the_cache_is_emptied_when_it_has_grown_and_layers_keep_what_they_cloned(
    layers: Layers, runner: StandIn, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def clone(seen: dict[str, Path]) -> int:
        (seen[CACHE] / "wheel").write_bytes(os.urandom(3 * MB))
        install(seen)
        copy: list[str | Path] = ["cp", "--reflink=always", seen[CACHE] / "wheel", seen[LAYER] / "venv/wheel"]
        subprocess.run(copy, check=True)
        os.sync()
        return 0

    runner.action = clone
    await layers.build_layer(plan(), print)
    content = (layers.lower(KEY) / "venv/wheel").read_bytes()
    monkeypatch.setattr("builderd.engine.oci.storage.layer_store.HIGH_WATER", 1e-9)
    runner.action = install
    await layers.build_layer(plan(OTHER), print)
    assert list((store.root / "cache").iterdir()) == []
    assert (layers.lower(KEY) / "venv/wheel").read_bytes() == content


def age(store: Store, key: str, days: float) -> None:
    then = time.time() - days * 86_400
    os.utime(store.layers / key, (then, then))


MONTH = 30 * 86_400.0


async def test_a_layer_that_was_not_used_for_long_is_collected(layers: Layers, runner: StandIn, store: Store) -> None:
    for key in (KEY, OTHER):
        await layers.build_layer(plan(key), print)
        age(store, key, 31)
    layers.lower(OTHER)
    assert layers.collect({KEY}, MONTH) == []
    assert layers.collect((), MONTH) == [KEY]
    assert not layers.has(KEY)
    assert layers.has(OTHER), "something was just started on it"


async def test_lookup_during_collection_is_atomic(layers: Layers, runner: StandIn, store: Store) -> None:
    """A create of somebody else, just when the layer is old enough to go."""
    for number in range(60):
        await layers.build_layer(plan(), print)
        age(store, KEY, 31)
        begun = threading.Barrier(2)

        def collect(begun: threading.Barrier = begun) -> list[str]:
            begun.wait()
            return layers.collect((), MONTH)

        def create(begun: threading.Barrier = begun, pause: float = number % 10 / 10_000) -> bool:
            begun.wait()
            time.sleep(pause)
            return layers.has(KEY)

        collecting, creating = asyncio.to_thread(collect), asyncio.to_thread(create)
        gone, found = await asyncio.gather(collecting, creating)
        assert found is not bool(gone)
        if found:
            assert (layers.lower(KEY) / "venv").is_dir(), "it was promised"


async def test_interrupted_collection_is_finished_at_start(layers: Layers, runner: StandIn, store: Store) -> None:
    await layers.build_layer(plan(), print)
    (store.layers / KEY).rename(store.layers / f".{KEY}")
    layers.open()
    assert list(store.layers.iterdir()) == []


async def test_a_flood_of_output_is_cut(layers: Layers, runner: StandIn) -> None:
    lines, progress = told()
    runner.lines = ["x" * 100_000] * 10_000
    outcome = await layers.build_layer(plan(), progress)
    assert len(outcome.output) == transcript.KEPT_LINES
    assert len(outcome.output[0]) == transcript.LINE_LENGTH + 1
    assert len(lines) == transcript.TOLD_LINES + 2
    assert "left out" in lines[-1]


async def test_after_a_restart_layers_stand_and_half_made_ones_are_gone(
    layers: Layers, runner: StandIn, store: Store
) -> None:
    await layers.build_layer(plan(), print)
    runner.gate.clear()
    runner.started.clear()
    hanging = asyncio.create_task(layers.build_layer(plan(OTHER), print))
    await runner.started.wait()
    (store.layers / OTHER).mkdir()
    again = Layers(store, runner, {})
    again.open()
    assert list(store.builds.iterdir()) == []
    assert again.has(KEY)
    assert not again.has(OTHER)
    assert not (store.layers / OTHER).exists()
    hanging.cancel()


async def test_a_layer_that_a_crash_of_the_machine_may_have_damaged_is_made_again(
    layers: Layers, runner: StandIn, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    await layers.build_layer(plan(), print)
    store.deferred_sync.sync()
    await layers.build_layer(plan(OTHER), print)
    monkeypatch.setattr("builderd.engine.oci.storage.store.boot_id", lambda: "another boot")
    layers.open()
    assert layers.has(KEY), "it was safe on the disk"
    assert not layers.has(OTHER)
