"""Sandboxes come and go, and nothing is left of them: on the host, in the service, in its launcher."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from tests.contract.engine import apps
from tests.engines import ENGINE_TIMEOUT, execute, make_spec, prepared, settings_in, until_listening

from builderd.core.errors import EngineUnavailable
from builderd.core.ids import new_sandbox_id
from builderd.dependencies.model import LAYER, BuildStep, Cache, LayerPlan
from builderd.engine.oci.engine.engine import OciEngine
from builderd.engine.oci.network.allocations import HOST_DIR, bridge_name, known_instance
from builderd.sandboxes.model import SandboxState
from builderd.versions.model import Isolation

pytestmark = pytest.mark.root


@pytest.fixture(autouse=True)
def nothing_stays(tmp_path: Path) -> Iterator[None]:
    """Also of a test that failed."""
    yield
    for data_dir in (tmp_path, tmp_path / "one", tmp_path / "two"):
        asyncio.run(OciEngine(settings_in(data_dir)).down())


@dataclass(frozen=True)
class Traces:
    """Everything on this host that belongs to one service."""

    mounts: tuple[str, ...]
    loops: tuple[str, ...]
    links: tuple[str, ...]
    groups: tuple[str, ...]
    processes: tuple[str, ...]
    files: tuple[str, ...]


def traces(data_dir: Path, instance: str) -> Traces:
    run_dir, names = f"/run/builderd/{instance}", (str(data_dir), f"/run/builderd/{instance}")
    mounts = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
    return Traces(
        mounts=tuple(sorted(target for target in mounts if target.startswith(names))),
        loops=tuple(sorted(loop for loop in backing_files() if loop.startswith(str(data_dir)))),
        links=tuple(sorted(link for link in names_in("/sys/class/net") if link.startswith(bridge_name(instance)))),
        groups=tuple(sorted(str(path) for path in Path("/sys/fs/cgroup").glob(f"**/builderd-{instance}/*/"))),
        processes=tuple(sorted(command for command in commands() if any(name in command for name in names))),
        files=tuple(sorted(files(Path(run_dir), "store"), key=str) + sorted(files(data_dir, "logs"), key=str)),
    )


def backing_files() -> list[str]:
    return [path.read_text().strip() for path in Path("/sys/block").glob("loop*/loop/backing_file")]


def commands() -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found.append(path.read_text(errors="replace").replace("\0", " "))
        except OSError:
            continue
    return found


def files(folder: Path, besides: str) -> list[str]:
    """But for the heartbeat, which comes a moment after the rest and stays."""
    found = [f"{at}/{name}" for at, _, names in os.walk(folder) for name in names if f"/{besides}" not in at]
    return [path for path in found if not path.endswith("/heartbeat")]


def names_in(folder: str) -> list[str]:
    return [path.name for path in Path(folder).iterdir()]


def descriptors(pid: int | str) -> int:
    return len(names_in(f"/proc/{pid}/fd"))


async def settled(data_dir: Path, instance: str, wanted: Traces) -> Traces:
    """The kernel takes links and namespaces away a moment after their last process."""
    deadline = time.monotonic() + 60
    while (seen := traces(data_dir, instance)) != wanted and time.monotonic() < deadline:
        await asyncio.sleep(0.05)
    return seen


async def ended(data_dir: Path, instance: str) -> Traces:
    """After ``down``, once it has settled: files stay."""
    now = traces(data_dir, instance)
    return await settled(data_dir, instance, replace(now, mounts=(), loops=(), links=(), groups=(), processes=()))


async def cycle(engine: OciEngine) -> None:
    """One of everything that a sandbox may meet in its life."""
    spec = await make_spec(engine, apps.SERVER)
    await engine.sandboxes.start(spec)
    await until_listening(engine, spec.id)
    await execute(engine, spec.id, "true", ENGINE_TIMEOUT, 100)
    assert (await execute(engine, spec.id, "sleep 1000", 0.05, 100)).exit_code == 124
    await execute(engine, spec.id, "(setsid sleep 1000 &)", ENGINE_TIMEOUT, 100)
    await engine.sandboxes.stop(spec.id, ENGINE_TIMEOUT)
    await engine.sandboxes.remove(spec.id)
    await engine.disks.delete_disk(spec.disk)
    await engine.logs.delete_logs(spec.builder_id)


async def failed_start(engine: OciEngine) -> None:
    spec = await make_spec(engine, apps.SILENT)
    broken = replace(spec, id=new_sandbox_id(), hostname="h" * 100)
    with pytest.raises(EngineUnavailable):
        await engine.sandboxes.start(broken)
    assert (await engine.sandboxes.report(broken.id)).state is SandboxState.ABSENT
    await engine.disks.delete_disk(spec.disk)
    await engine.logs.delete_logs(spec.builder_id)


async def failed_build(engine: OciEngine) -> None:
    script = ("/bin/sh", "-c", f"mkdir {LAYER}/venv; exit 3")
    step = BuildStep("fail", script, network=False, cache=Cache.NONE)
    plan = LayerPlan(secrets.token_hex(32), {}, (step,), runs_foreign_code=False)
    assert (await engine.layers.build_layer(plan, lambda line: None)).exit_code == 3


async def at_rest(engine: OciEngine) -> tuple[int, int]:
    """Return the number of open descriptors here and in the launcher, once no other work goes on."""
    launcher = engine._here.launcher._process
    assert launcher
    gc.collect()
    # The watch over the store opens a file for a moment now and then: a leak stays open.
    counts = []
    for _ in range(10):
        counts.append((descriptors("self"), descriptors(launcher.pid)))
        await asyncio.sleep(0.03)
    return min(own for own, _ in counts), min(other for _, other in counts)


async def test_nothing_is_left_of_sandboxes_that_came_and_went(tmp_path: Path) -> None:
    settings = settings_in(tmp_path)
    async with prepared(settings) as engine:
        # What is kept ready is made once, by the first of them.
        for step in (cycle, failed_start, failed_build):
            await step(engine)
        here = known_instance(tmp_path)
        assert here
        now = traces(tmp_path, here.id)
        before = await settled(tmp_path, here.id, replace(now, links=(bridge_name(here.id),)))
        open_before = await at_rest(engine)
        for _ in range(2):
            await asyncio.gather(cycle(engine), cycle(engine))
            await failed_start(engine)
            await failed_build(engine)
        assert await settled(tmp_path, here.id, before) == before
        assert await at_rest(engine) == open_before
        assert before.links == (bridge_name(here.id),)
        await engine.down()
        nothing = await ended(tmp_path, here.id)
        assert (nothing.mounts, nothing.loops, nothing.links, nothing.groups) == ((), (), (), ())
        assert not any("conmon" in command or "launcher" in command for command in nothing.processes)
        assert not Path("/run/builderd", here.id).exists()
        assert here.id not in [one["id"] for one in json.loads((HOST_DIR / "allocations.json").read_text())]
    await OciEngine(settings).down()


@pytest.mark.parametrize("isolation", [Isolation.STANDARD, pytest.param(Isolation.STRONG, marks=pytest.mark.slow)])
async def test_nothing_is_left_of_a_start_that_was_broken_off_at_any_moment(
    tmp_path: Path, isolation: Isolation
) -> None:
    async with prepared(settings_in(tmp_path)) as engine:
        spec = await make_spec(engine, apps.SILENT, isolation=isolation)
        await engine.sandboxes.start(spec)
        await engine.sandboxes.stop(spec.id, 0)
        await engine.sandboxes.remove(spec.id)
        here = known_instance(tmp_path)
        assert here
        now = traces(tmp_path, here.id)
        before = await settled(tmp_path, here.id, replace(now, links=(bridge_name(here.id),)))
        for step in range(14):
            starting = asyncio.create_task(engine.sandboxes.start(replace(spec, id=new_sandbox_id())))
            await asyncio.sleep(step * 0.006)
            starting.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                report = await starting
                await engine.sandboxes.stop(report.id, 0)
                await engine.sandboxes.remove(report.id)
        assert await settled(tmp_path, here.id, before) == before


async def test_down_also_ends_what_an_earlier_service_left(tmp_path: Path) -> None:
    settings = settings_in(tmp_path)
    async with prepared(settings) as engine:
        spec = await make_spec(engine, apps.SERVER)
        await engine.sandboxes.start(spec)
        await engine.close()
        await OciEngine(settings).down()
        here = known_instance(tmp_path)
        assert here
        left = await ended(tmp_path, here.id)
        assert (left.mounts, left.loops, left.links, left.groups, left.processes) == ((), (), (), (), ())
    await OciEngine(settings).down()


async def test_down_of_a_data_directory_that_was_never_used_makes_nothing(tmp_path: Path) -> None:
    await OciEngine(settings_in(tmp_path / "never")).down()
    assert not (tmp_path / "never").exists()


async def test_two_services_do_not_disturb_each_other(tmp_path: Path) -> None:
    one, two = settings_in(tmp_path / "one"), settings_in(tmp_path / "two")
    async with prepared(one) as first, prepared(two) as second:
        ours, theirs = await make_spec(first, apps.SERVER), await make_spec(second, apps.SERVER)
        for engine, spec in ((first, ours), (second, theirs)):
            await engine.sandboxes.start(spec)
            await until_listening(engine, spec.id)
        assert first.sandboxes.gateway != second.sandboxes.gateway
        ip = (await second.sandboxes.report(theirs.id)).ip
        probe = f"python3 -c 'import socket; socket.create_connection((\"{ip}\", 8000), 1)'"
        assert (await execute(first, ours.id, probe, ENGINE_TIMEOUT, 1000)).exit_code != 0
        await first.down()
        assert (await second.sandboxes.report(theirs.id)).state is SandboxState.RUNNING
        assert (await execute(second, theirs.id, "echo here", ENGINE_TIMEOUT, 100)).output == "here\n"
        assert [report.id for report in await second.sandboxes.list_sandboxes()] == [theirs.id]
    for settings in (one, two):
        await OciEngine(settings).down()
