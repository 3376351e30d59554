"""The service is killed at every step of every operation: the next one finishes the work, and nothing is left over."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

import pytest
from tests.acceptance import test_crash_matrix, test_idle_crashes, test_redeploy_crashes
from tests.application import ENTRYPOINT, MAIN, PATIENCE, REQUIREMENTS, World, fake_world, hurry
from tests.fakes.sandboxes import Behaviour
from tests.unit.reconciler.ledgers import check_ledger
from tests.unit.reconciler.mortal import living
from tests.unit.reconciler.witness import Witness, told

from builderd.builders import service as builders
from builderd.builders.model import Builder, Desired, JobType, Status
from builderd.code.model import BundleFile
from builderd.core.ids import DiskId, new_id
from builderd.database.unit_of_work import UnitOfWork
from builderd.idle import service as wake
from builderd.idle.job import Idleness
from builderd.money.model import Billing
from builderd.previews.model import RouteState
from builderd.reconciler.worker import LEASE
from builderd.sandboxes.model import EndCause
from builderd.versions import service as deployments

RELEASE, MIGRATES = "flask db upgrade", Behaviour(listens_at=None, exits_at=3)
GOOD, HASTY, DEAF = Behaviour(), Behaviour(exits_at=0, exit_code=1), Behaviour(listens_at=None)
NEW, OTHER_REQUIREMENTS = BundleFile("main.py", b"new"), BundleFile("requirements.txt", b"django\n")
#: A step begins where the one before it was recorded, so only the first has that moment too.
MOMENTS = ("done", "recorded")


@dataclass(frozen=True, slots=True)
class Operation:
    """``before`` makes the builder, with a service that lives; ``act`` is asked of the one that is killed.

    ``behaviour`` is that of the app from the operation on.
    """

    steps: tuple[str, ...]
    before: Callable[[World], Coroutine[None, None, Builder]] | None
    act: Callable[[World, Builder | None], Coroutine[None, None, Builder]]
    outcome: Status
    behaviour: Behaviour | tuple[Behaviour, ...] = GOOD


async def up(world: World) -> Builder:
    return await world.create(MAIN, REQUIREMENTS)


async def idles(world: World) -> Builder:
    return await world.create(MAIN, REQUIREMENTS, auto_stop_interval=15)


async def asleep(world: World) -> Builder:
    builder = await sleeps(world, await idles(world))
    await world.until(lambda: at_rest(world, builder))
    return builder


async def idled(world: World) -> Builder:
    builder = await idles_out(world, await idles(world))
    await world.until(lambda: at_rest(world, builder))
    return builder


async def sleeps(world: World, builder: Builder | None) -> Builder:
    """Let it be unused for long enough to be frozen, and let the service notice."""
    return await idle_for(world, builder, 61)


async def idles_out(world: World, builder: Builder | None) -> Builder:
    """Let it be unused for long enough to be stopped."""
    return await idle_for(world, builder, 15 * 60 + 1)


async def idle_for(world: World, builder: Builder | None, seconds: float) -> Builder:
    assert builder is not None
    idleness = Idleness(world.application)
    await idleness.check()
    world.clock.move(seconds)
    await idleness.check()
    return builder


async def at_rest(world: World, builder: Builder) -> bool:
    route = await world.route(builder)
    now = await world.builder(builder)
    stands = [sandbox.frozen for sandbox in world.engine.known.values()]
    billing = (await world.segments(builder))[-1].billing
    is_frozen = (stands, billing) in (([True], Billing.FROZEN), ([], Billing.STOPPED))
    return route is not None and route.state is RouteState.ASLEEP and is_frozen and now.settled


async def visit(world: World, builder: Builder | None) -> Builder:
    assert builder is not None
    await wake.visited(world.application, builder.host)
    return builder


async def stopped(world: World) -> Builder:
    return await world.reached(builders.stop, await up(world))


async def stopped_without_its_disk(world: World) -> Builder:
    world.engine.behave(RELEASE, MIGRATES, MIGRATES)
    builder = await world.reached(builders.stop, await world.create(MAIN, REQUIREMENTS, release=RELEASE))
    del world.engine.known_disks[builder.disk]
    return builder


async def job_that_runs(world: World) -> Builder:
    return await world.outcome(await world.ask_job())


def wish(command: builders.Command) -> Callable[[World, Builder | None], Coroutine[None, None, Builder]]:
    async def act(world: World, builder: Builder | None) -> Builder:
        assert builder is not None
        return await world.want(command, builder)

    return act


async def create(world: World, _: Builder | None) -> Builder:
    return await world.ask(MAIN, REQUIREMENTS)


async def create_job(world: World, _: Builder | None) -> Builder:
    return await world.ask_job(MAIN, REQUIREMENTS)


async def app_exits(world: World, builder: Builder | None) -> Builder:
    assert builder is not None
    (sandbox,) = world.running
    world.clock.move(10)
    world.engine.end(sandbox.spec.id, EndCause.EXITED, 1)
    return builder


async def redeploy(world: World, builder: Builder | None) -> Builder:
    assert builder is not None
    await world.put(builder, NEW, OTHER_REQUIREMENTS)
    return builder


async def switch(world: World, builder: Builder | None) -> Builder:
    """To a copy of its disk."""
    assert builder is not None
    known, code, disk = builder, await world.version(builder), DiskId(new_id())
    await world.engine.clone_disk(builder.disk, disk, code.settings.resources.disk_bytes)

    def write(uow: UnitOfWork) -> Builder:
        found = deployments.changeable(uow, world.application, world.caller, known.id)
        return deployments.switch(uow, world.application, world.caller, found, disk, code, world.clock.now()).builder

    return await world.application.commit(write)


async def renew_token(world: World, builder: Builder | None) -> Builder:
    assert builder is not None
    known, now = builder.id, world.clock.now()
    return await world.application.commit(
        lambda uow: deployments.renew_service_token(uow, world.application, world.caller, known, now)
    )


async def create_with_release(world: World, _: Builder | None) -> Builder:
    world.engine.behave(RELEASE, MIGRATES)
    return await world.ask(MAIN, REQUIREMENTS, release=RELEASE)


async def redeploy_with_release(world: World, builder: Builder | None) -> Builder:
    assert builder is not None
    world.engine.behave(RELEASE, MIGRATES)
    await world.put(builder, NEW, release=RELEASE)
    return builder


AGAIN = ("PlanSandbox", "StartSandbox", "AwaitListening", "SetRoute")
START = ("SetRoute", *AGAIN, "Settle")
PREPARE = ("SetRoute", "Review", "Install", "CreateDisk", "PutBundle")
TAKE_OVER = ("SetRoute", "StopSandbox", "CreateDisk", "PutBundle", *AGAIN, "Settle", "DropDisks")
RELEASED = ("PlanSandbox", "StartSandbox", "AwaitRelease", "RecordEnd")
OPERATIONS = {
    "create": Operation((*PREPARE, *AGAIN, "CheckApp", "Settle"), None, create, Status.RUNNING),
    "create what does not start": Operation(
        ("SetRoute", "StartSandbox", "RecordEnd", "GiveUp", "SetRoute"), None, create, Status.FAILED, HASTY
    ),
    "create what does not listen": Operation(
        ("AwaitListening", "SetRoute", "SetRoute", "StopSandbox"), None, create, Status.FAILED, DEAF
    ),
    "create a job": Operation(
        (*PREPARE, "PlanSandbox", "StartSandbox", "RecordEnd", "Settle"),
        None,
        create_job,
        Status.COMPLETED,
        Behaviour(exits_at=1),
    ),
    "stop": Operation(("SetRoute", "StopSandbox", "Settle"), up, wish(builders.stop), Status.STOPPED),
    "start": Operation(START, stopped, wish(builders.start), Status.RUNNING),
    "restart": Operation(("SetRoute", "StopSandbox", *AGAIN, "Settle"), up, wish(builders.restart), Status.RUNNING),
    "delete": Operation(("RemoveRoute", "StopSandbox", "Forget"), up, wish(builders.delete), Status.DELETED),
    "delete a stopped one": Operation(("RemoveRoute", "Forget"), stopped, wish(builders.delete), Status.DELETED),
    "delete a job": Operation(("StopSandbox", "Forget"), job_that_runs, wish(builders.delete), Status.DELETED),
    "freeze": Operation(("SetRoute", "Freeze"), idles, sleeps, Status.RUNNING),
    "thaw": Operation(("Thaw", "SetRoute"), asleep, visit, Status.RUNNING),
    "idle stop": Operation(("SetRoute", "StopSandbox", "Settle"), idles, idles_out, Status.STOPPED),
    "idle stop of a frozen one": Operation(("StopSandbox", "Settle"), asleep, idles_out, Status.STOPPED),
    "wake": Operation(START, idled, visit, Status.RUNNING),
    "stop a frozen one": Operation(("SetRoute", "StopSandbox", "Settle"), asleep, wish(builders.stop), Status.STOPPED),
    "delete a frozen one": Operation(
        ("RemoveRoute", "StopSandbox", "Forget"), asleep, wish(builders.delete), Status.DELETED
    ),
    "redeploy": Operation(("Review", "Install", "PlanTrial", "TryCandidate", *TAKE_OVER), up, redeploy, Status.RUNNING),
    "redeploy what does not start": Operation(("PlanTrial", "TryCandidate"), up, redeploy, Status.RUNNING, HASTY),
    "redeploy what starts on trial only": Operation(
        ("StartSandbox", "RecordEnd", "GiveUp", "PlanSandbox", "PlanSandbox", "Settle", "DropDisks"),
        up,
        redeploy,
        Status.RUNNING,
        (GOOD, HASTY, GOOD),
    ),
    "redeploy a stopped one": Operation(
        ("HandOver", "CreateDisk", "PutBundle", "AwaitListening", "DropDisks"),
        stopped,
        redeploy,
        Status.RUNNING,
    ),
    "redeploy a job": Operation(
        ("HandOver", "StopSandbox", "CreateDisk", "Settle", "DropDisks"),
        job_that_runs,
        redeploy,
        Status.RUNNING,
    ),
    "create with a release": Operation(RELEASED, None, create_with_release, Status.RUNNING),
    "redeploy with a release": Operation(RELEASED, up, redeploy_with_release, Status.RUNNING),
    "switch": Operation(("HandOver", "StopSandbox", "AwaitListening", "DropDisks"), up, switch, Status.RUNNING),
    "renew the token": Operation(
        ("SetRoute", "StopSandbox", "AwaitListening", "Settle"), up, renew_token, Status.RUNNING
    ),
    "exit": Operation(("SetRoute", "RecordEnd", *AGAIN), up, app_exits, Status.RUNNING),
}


def cases() -> Iterator[Any]:
    """The operation, the point, and which time that it is come to.

    Every run kills after what a step did and before its record, where the next service has most to find out, and
    script/soak after each record too.
    """
    for name, operation in OPERATIONS.items():
        yield pytest.param(name, f"{operation.steps[0]}.begun", 1)
        for number, step in enumerate(operation.steps):
            nth = operation.steps[: number + 1].count(step)
            yield pytest.param(name, f"{step}.done", nth)
            yield pytest.param(name, f"{step}.recorded", nth, marks=pytest.mark.slow)


@pytest.fixture
async def world(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    hurry(monkeypatch.setattr)
    async with fake_world(start_timeout=1) as made:
        yield made


@pytest.mark.parametrize(("name", "point", "nth"), list(cases()), ids=str)
async def test_a_service_that_is_killed_there_is_made_good_by_the_next(
    world: World, name: str, point: str, nth: int
) -> None:
    operation = OPERATIONS[name]
    builder = None
    if operation.before:
        async with living(world) as life:
            builder = await operation.before(life.world)
    does = operation.behaviour
    world.engine.behave(ENTRYPOINT, *(does if isinstance(does, tuple) else (does,)))

    async with living(world, point, nth) as life:
        begun = asyncio.create_task(operation.act(life.world, builder))
        async with asyncio.timeout(PATIENCE):
            while not life.is_over:
                await asyncio.sleep(0.004)
                world.clock.move(0.1)  # for delays
        builder = await begun

    world.clock.move(LEASE.total_seconds())
    async with living(world) as life:
        await comes_to(life.world, builder, operation.outcome)
        await check_world(life.world, builder)
        await check_ledger(life.world, builder)
        if operation.outcome is not Status.DELETED:
            await life.world.reached(builders.delete, builder)
        await life.world.until_nothing_is_left()
    await check_ledger(world, builder)


async def comes_to(world: World, builder: Builder, status: Status) -> None:
    async with asyncio.timeout(PATIENCE):
        while True:
            now = await world.builder(builder)
            if now.status is status and now.settled and is_alone(now) and await is_whole(world, now):
                return
            await asyncio.sleep(0.004)
            world.clock.move(0.1)  # for delays


def is_alone(builder: Builder) -> bool:
    """No other version is being deployed, and no disk is left of one that was."""
    return builder.desired is Desired.DELETED or (builder.candidate is None and not builder.spare_disks)


async def is_whole(world: World, builder: Builder) -> bool:
    """Exactly what the status promises is there."""
    route = await world.route(builder)
    if builder.asleep_since is not None:
        return await at_rest(world, builder)
    if builder.status is Status.RUNNING and (await world.segments(builder))[-1].billing is not Billing.RUNNING:
        return False
    if builder.status is Status.RUNNING:
        ips = [sandbox.ip for sandbox in world.running]
        if builder.job_type is JobType.ONE_TIME:
            return len(ips) == 1
        assert list(world.engine.known_disks) == [builder.disk]
        return route is not None and route.destination is not None and ips == [route.destination.ip]
    if builder.status is Status.DELETED:
        return not await world.left()
    return not world.engine.known and route is not None and route.state is not RouteState.OPEN


async def check_world(world: World, builder: Builder) -> None:
    records = await world.records(builder)
    open_ones = [record.id for record in records if record.end is None]
    assert open_ones == list(world.engine.known)
    assert len({(record.generation, record.attempt) for record in records}) == len(records)
    assert sum(record.release for record in records) <= 1, "a release never runs twice"


async def test_a_service_that_is_killed_again_and_again_comes_to_its_end(world: World) -> None:
    builder = await world.ask(MAIN, REQUIREMENTS)
    for point in [f"{step}.{moment}" for step in (*PREPARE, *START[1:]) for moment in MOMENTS]:
        async with living(world, point) as life:
            world.clock.move(LEASE.total_seconds())
            async with asyncio.timeout(PATIENCE):
                while not life.is_over and not (await world.builder(builder)).settled:
                    await asyncio.sleep(0.002)
    async with living(world) as life:
        world.clock.move(LEASE.total_seconds())
        await comes_to(life.world, builder, Status.RUNNING)
    assert world.called("start") >= 1
    assert len(world.running) == 1
    await check_ledger(world, builder)


async def test_a_disk_that_was_made_before_the_kill_is_paid_from_the_next_service_on(world: World) -> None:
    async with living(world, "Review.done") as life:
        builder = await life.world.ask()
        await world.until(lambda: life.is_over)
    assert await world.segments(builder) == []
    world.clock.move(LEASE.total_seconds())
    async with living(world) as life:
        await comes_to(life.world, builder, Status.RUNNING)
    assert [segment.billing for segment in await world.segments(builder)] == [Billing.STOPPED, Billing.RUNNING]


@pytest.mark.parametrize("point", ["RecordLoss.done", "RecordLoss.recorded", "CreateDisk.done", "CreateDisk.recorded"])
async def test_lost_disk_is_recorded_once_and_its_release_runs_again_whenever_the_service_is_killed(
    world: World, point: str
) -> None:
    async with living(world) as life:
        builder = await stopped_without_its_disk(life.world)
    async with living(world, point) as life:
        await life.world.want(builders.start, builder)
        await world.until(lambda: life.is_over)
    world.clock.move(LEASE.total_seconds())
    async with living(world) as life:
        await comes_to(life.world, builder, Status.RUNNING)
    assert [one.type for one in await world.events(builder)].count("disk.lost") == 1
    assert [one.generation for one in await world.records(builder) if one.release] == [1, 2]
    await check_ledger(world, builder)


async def test_app_planned_before_its_disk_was_lost_starts_after_its_release(world: World) -> None:
    async with living(world) as life:
        builder = await stopped_without_its_disk(life.world)
        builder = await life.world.reached(builders.stop, await life.world.reached(builders.start, builder))
        world.engine.behave(RELEASE, MIGRATES)
    async with living(world, "PlanSandbox.recorded") as life:
        await life.world.want(builders.start, builder)
        await world.until(lambda: life.is_over)
    del world.engine.known_disks[builder.disk]
    world.clock.move(LEASE.total_seconds())
    async with living(world) as life:
        await comes_to(life.world, builder, Status.RUNNING)
    planned, release, app = (await world.records(builder))[-3:]
    assert (planned.started_at, release.release, app.release) == (None, True, False)
    assert release.end is not None


@pytest.mark.parametrize("command", [builders.stop, builders.delete])
async def test_unrecorded_start_of_a_killed_service_is_recorded_and_billed(
    world: World, command: builders.Command
) -> None:
    async with living(world, "StartSandbox.done") as life:
        builder = await life.world.ask()
        await world.until(lambda: life.is_over)
    (sandbox,) = world.running
    world.clock.move(LEASE.total_seconds())
    await world.want(command, builder)
    async with living(world) as life:
        await comes_to(life.world, builder, OPERATIONS[command.__name__].outcome)
    started, *_ = [one.time for one in await world.events(builder) if one.type == "sandbox.started"]
    ended, *_ = [one.time for one in await world.events(builder) if one.type == "sandbox.ended"]
    assert started == sandbox.started_at
    assert ended - sandbox.started_at >= LEASE
    paid = [(one.start, one.end) for one in await world.segments(builder) if one.billing is Billing.RUNNING]
    assert paid[0] == (sandbox.started_at, ended)
    await check_ledger(world, builder)


async def exits(world: World, builder: Builder | None) -> Builder:
    assert builder is not None
    (sandbox,) = world.running
    world.engine.end(sandbox.spec.id, EndCause.OUT_OF_MEMORY, 137)
    return builder


def lasting(spans: Iterable[tuple[datetime, datetime | None]]) -> timedelta:
    return sum((end - start for start, end in spans if end is not None), timedelta())


@pytest.mark.parametrize("then", [visit, wish(builders.stop), wish(builders.delete), exits])
@pytest.mark.parametrize("name", ["freeze", "thaw"])
async def test_unrecorded_freeze_or_thaw_of_a_killed_service_is_recorded_and_billed(
    world: World, name: str, then: Callable[[World, Builder | None], Coroutine[None, None, Builder]]
) -> None:
    witness = Witness(world.engine)
    async with living(world) as life:
        builder = await (idles if name == "freeze" else asleep)(life.world)
    async with living(world, f"{name.capitalize()}.done") as life:
        await (sleeps if name == "freeze" else visit)(life.world, builder)
        await world.until(lambda: life.is_over)
    world.clock.move(600)
    await then(world, builder)
    async with living(world) as life, asyncio.timeout(PATIENCE):
        while not (await life.world.builder(builder)).settled or life.works:
            await asyncio.sleep(0.002)
            world.clock.move(0.1)
        world.clock.move(5)
        if (await life.world.builder(builder)).desired is not Desired.DELETED:
            await life.world.reached(builders.delete, builder)
        await life.world.until_nothing_is_left()
    really = sorted((one.state, one.start, one.end) for one in witness.spans(builder.id))
    assert sorted((one.state, one.start, one.end) for one in told(await world.events(builder))) == really
    for state, billing in (("running", Billing.RUNNING), ("frozen", Billing.FROZEN)):
        paid = [one for one in await world.segments(builder) if one.billing is billing]
        seen = [(start, end) for one, start, end in really if one == state]
        assert lasting([(one.start, one.end) for one in paid]) == lasting(seen)
    await check_ledger(world, builder)


@pytest.mark.parametrize("then", [visit, wish(builders.stop), wish(builders.delete)])
async def test_builder_frozen_at_the_moment_of_its_wake_is_billed_as_frozen(
    world: World, then: Callable[[World, Builder | None], Coroutine[None, None, Builder]]
) -> None:
    async with living(world) as life:
        builder = await visit(life.world, await asleep(life.world))
        await life.world.until_route(builder, RouteState.OPEN)
        await life.world.application.store.write(lambda uow: falls_asleep(life.world, uow, builder))
        await life.world.until(lambda: at_rest(life.world, builder))
        (sandbox,) = life.world.running
        assert sandbox.frozen_at == sandbox.thawed_at == world.clock.now()
        world.clock.move(600)
        await then(life.world, builder)
        await life.world.until(lambda: not sandbox.frozen and not life.works)
        *_, paid, _ = await world.segments(builder)
        assert (paid.billing, paid.end) == (Billing.FROZEN, paid.start + timedelta(seconds=600))
        assert [one.start for one in told(await world.events(builder)) if one.state == "frozen"][-1] == paid.start


def falls_asleep(world: World, uow: UnitOfWork, builder: Builder) -> None:
    now = world.clock.now()
    uow.builders.save(replace(builders.get(uow, world.caller.tenant_id, builder.id, lock=True), asleep_since=now))
    uow.builders.make_due(builder.id, now)


@pytest.mark.parametrize("turns", range(0, 60, 3))
async def test_a_service_that_ends_at_any_moment_lets_go_of_its_claims(world: World, turns: int) -> None:
    async with living(world) as life:
        builder = await life.world.ask()
        for _ in range(turns):
            await asyncio.sleep(0.0005)
    now = world.clock.now()
    assert await world.application.store.write(lambda uow: uow.builders.claim(builder.id, "another", now, now))


async def test_the_next_service_goes_on_at_once(world: World) -> None:
    world.engine.behave(ENTRYPOINT, Behaviour(listens_at=30))
    async with living(world):
        builder = await world.ask()
        await world.until(lambda: world.called("listening") > 2)
    async with living(world) as life:  # no time has passed for the lease to end
        await comes_to(life.world, builder, Status.RUNNING)
    assert world.called("start") == 1


#: Operation of the acceptance tests → the one on fakes, all of whose steps are killed there.
SAME = {
    "rollback": "redeploy",
    "change": "redeploy",
    "broken": "redeploy what starts on trial only",
    "token": "restart",
}
STEPS: Mapping[str, tuple[str, ...]] = {
    **test_crash_matrix.STEPS,
    **test_idle_crashes.STEPS,
    **test_redeploy_crashes.STEPS,
}


@pytest.mark.parametrize("operation", STEPS)
def test_each_step_of_acceptance_tests_is_one_on_fakes(operation: str) -> None:
    known = OPERATIONS[SAME.get(operation, operation)].steps
    assert set(STEPS[operation]) <= set(known), "no service comes by there: leave it out"
