"""Further processes of an app: each has a sandbox of its own, and all of them start, stop and change together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from functools import partial

import pytest
from tests.application import ENTRYPOINT, MAIN, PATIENCE, World, fake_world, hurry
from tests.fakes.sandboxes import Behaviour
from tests.unit.reconciler.mortal import living

from builderd.builders import processes, service
from builderd.builders.model import MAX_EXITS, Builder, JobType, Status
from builderd.code.model import BundleFile, make_bundle
from builderd.core.errors import NoCapacity, NotFound, StartFailed, ValidationFailed
from builderd.core.resources import Capacity
from builderd.money.model import Billing
from builderd.reconciler.worker import LEASE
from builderd.sandboxes.model import EndCause

WORKER, BEAT = "celery -A tasks worker", "celery -A tasks beat"
BOTH = {"worker": WORKER, "beat": BEAT}
NEW = BundleFile("main.py", b"new")


@pytest.fixture
async def world(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    hurry(monkeypatch.setattr)
    async with fake_world(start_timeout=1) as made:
        yield made


@pytest.fixture
async def alive(world: World) -> AsyncIterator[World]:
    async with living(world) as life:
        yield life.world


def running(world: World) -> dict[str, str]:
    return {one.spec.process: one.spec.entrypoint for one in world.running}


ALL = {"": ENTRYPOINT, "worker.1": WORKER, "beat.1": BEAT}


async def states(world: World, builder: Builder) -> dict[str, tuple[str, int]]:
    version = await world.version(builder)
    now, runs = await world.builder(builder), await world.read(lambda uow: uow.sandboxes.of_present_runs([builder.id]))
    found = processes.views(now, version, runs[builder.id])
    return {one.name: (one.state, one.restarts) for one in found}


async def test_processes_run_beside_the_app_on_its_disk_with_its_environment(alive: World) -> None:
    builder = await alive.create(MAIN, processes=BOTH, env={"COLOUR": "red"})
    assert running(alive) == ALL
    assert {(one.spec.disk, one.spec.env["COLOUR"]) for one in alive.running} == {(builder.disk, "red")}
    assert [one.spec.hostname for one in alive.running] == ["my-api", "my-api-worker-1", "my-api-beat-1"]
    (now,) = [one for one in await alive.segments(builder) if one.end is None]
    resources = (await alive.version(builder)).settings.resources
    assert now.hourly_rate == alive.application.prices.hourly_rate(resources.times(3), Billing.RUNNING)


async def test_a_process_is_scaled_and_restarted_by_itself(alive: World) -> None:
    builder = await alive.create(MAIN, processes=BOTH)
    await alive.configure(builder, scale={"worker": 2, "beat": 0})
    await alive.until(lambda: running(alive).keys() == {"", "worker.1", "worker.2"})
    before = {one.spec.process: one.spec.id for one in alive.running}
    await alive.want(partial(service.restart_process, process="worker.2"), builder)
    await alive.until(
        lambda: (
            {one.spec.process: one.spec.id for one in alive.running}.get("worker.2") not in {None, before["worker.2"]}
        )
    )
    assert {one.spec.id for one in alive.running} >= {before[""], before["worker.1"]}
    with pytest.raises(NotFound, match="it has web, worker, beat"):
        await alive.want(partial(service.restart_process, process="nope"), builder)
    with pytest.raises(ValidationFailed):
        await alive.configure(builder, scale={"web": 2})


async def test_a_redeploy_ends_the_old_processes_before_the_new_ones_start(alive: World) -> None:
    builder = await alive.create(MAIN, processes=BOTH)
    alive.engine.calls.clear()
    old = {one.spec.id for one in alive.running if one.spec.process}
    await alive.deploy(builder, NEW, processes={"worker": "other"})
    calls = [(name, one) for name, one in alive.engine.calls if name in ("stop", "clone_disk")]
    _, take_over_copy = [n for n, one in enumerate(calls) if one[0] == "clone_disk"]
    assert {one for _, one in calls[:take_over_copy]} >= old
    assert running(alive) == {"": ENTRYPOINT, "worker.1": "other"}
    assert (await alive.builder(builder)).scale == {"worker": 1}


async def test_a_version_fails_whose_process_does_not_start_and_the_old_one_goes_on(alive: World) -> None:
    builder = await alive.create(MAIN, processes=BOTH)
    alive.engine.behave("broken", Behaviour(exits_at=0, exit_code=2))
    with pytest.raises(StartFailed, match=r"The process mailer\.1 \(broken\) ended before it was up"):
        await alive.deploy(builder, NEW, processes={"mailer": "broken"})
    await alive.until(lambda: running(alive) == ALL)
    assert (await alive.builder(builder)).scale == {"worker": 1, "beat": 1}


async def test_a_process_that_crashes_too_often_is_given_up_and_the_app_goes_on(alive: World) -> None:
    builder = await alive.create(MAIN, processes=BOTH)
    for number in range(1, MAX_EXITS + 1):
        await alive.until(lambda: "worker.1" in running(alive))
        one = next(one for one in alive.running if one.spec.process == "worker.1")
        alive.engine.end(one.spec.id, EndCause.EXITED, 1)
        await alive.until(partial(_crashes, alive, builder, number))
        alive.clock.move(20)
    assert await states(alive, builder) == {
        "web": ("running", 0),
        "worker": ("failed", MAX_EXITS),
        "beat": ("running", 0),
    }
    assert (await alive.builder(builder)).status is Status.RUNNING
    assert [one.type for one in await alive.events(builder)].count("process.failed") == 1
    await alive.want(partial(service.restart_process, process="worker"), builder)
    await alive.until(lambda: running(alive) == ALL)


async def _crashes(world: World, builder: Builder, number: int) -> bool:
    return (await states(world, builder))["worker"][1] == number


async def test_processes_count_against_quota_and_machine(alive: World) -> None:
    alive.engine.has = Capacity(100, 2.5, 100)
    with pytest.raises(NoCapacity):
        await alive.ask(MAIN, processes={f"p{number}": "true" for number in range(10)})
    builder = await alive.create(MAIN)
    assert (await alive.read(lambda uow: uow.builders.allocated(builder.tenant_id))).running_builders == 1
    await alive.deploy(builder, NEW, processes={"worker": WORKER})
    allocated = await alive.read(lambda uow: uow.builders.allocated(builder.tenant_id))
    assert (allocated.builders, allocated.running_builders, allocated.cpu) == (1, 2, 2)
    with pytest.raises(NoCapacity):
        await alive.configure(builder, scale={"worker": 10})


async def change(world: World, builder: Builder) -> None:
    await world.put(builder, NEW, processes={"worker": "other"})


async def stop(world: World, builder: Builder) -> None:
    await world.want(service.stop, builder)


async def scale(world: World, builder: Builder) -> None:
    await world.configure(builder, scale={"worker": 2, "beat": 0})


CHANGED = {"": ENTRYPOINT, "worker.1": "other"}
KILLS = [
    (change, "StopProcesses.done", CHANGED),
    (change, "PlanSandbox.recorded", CHANGED),
    (change, "StartProcess.done", CHANGED),
    (change, "AwaitProcess.done", CHANGED),
    (stop, "StopProcesses.done", {}),
    (stop, "StopProcesses.recorded", {}),
    (scale, "StopProcesses.done", {"": ENTRYPOINT, "worker.1": WORKER, "worker.2": WORKER}),
    (scale, "StartProcess.done", {"": ENTRYPOINT, "worker.1": WORKER, "worker.2": WORKER}),
]


@pytest.mark.parametrize(("act", "point", "outcome"), KILLS)
async def test_a_service_that_is_killed_there_is_made_good_by_the_next(
    world: World, act: Callable[..., object], point: str, outcome: dict[str, str]
) -> None:
    async with living(world) as life:
        builder = await life.world.create(MAIN, processes=BOTH)
    async with living(world, point, 1) as life:
        await act(life.world, builder)  # type: ignore[misc]
        async with asyncio.timeout(PATIENCE):
            while not life.is_over:
                await asyncio.sleep(0.004)
                world.clock.move(0.1)
    world.clock.move(LEASE.total_seconds())
    async with living(world) as life:
        async with asyncio.timeout(PATIENCE):
            while running(life.world) != outcome or not (await life.world.builder(builder)).settled:
                await asyncio.sleep(0.004)
                world.clock.move(0.1)
        await life.world.reached(service.delete, builder)
        await life.world.until_nothing_is_left()


PROCFILES: dict[str, dict[str, str] | str] = {
    "web: a\nworker: b\n# c\n\nrelease: d\n": {"worker": "b"},
    "bot: x\nweb-2: y\n": {"web-2": "y"},
    "worker sleep": "line 1: must be NAME: COMMAND",
    "worker: a\nworker: b": "line 2: the process worker stands there already",
    ".x: a": "letters, digits",
    "a: \0": "NUL",
    "\n".join(f"p{number}: x" for number in range(200)): "at most 10",
}


@pytest.mark.parametrize("text", PROCFILES)
def test_a_procfile_is_read_or_refused_with_its_line(text: str) -> None:
    expected, bundle = PROCFILES[text], make_bundle([BundleFile("Procfile", text.encode())])
    if isinstance(expected, dict):
        assert processes.read_procfile(bundle, JobType.ALWAYS_ON, "x") == expected
        return
    with pytest.raises(ValidationFailed, match=expected):
        processes.read_procfile(bundle, JobType.ALWAYS_ON, "x")
