"""New versions beside one that serves: taken over when they are up, and without a trace when they are not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest
from tests.application import ENTRYPOINT, MAIN, REQUIREMENTS, World, look_once
from tests.fakes.sandboxes import Behaviour
from tests.unit.reconciler.ledgers import check_ledger

from builderd.builders import outcomes
from builderd.builders import service as builders
from builderd.builders.model import Builder, Desired, Status, StopKind, Visibility
from builderd.code.model import BundleFile
from builderd.core.errors import BuilderdError, InstallFailed, InvalidState, NoCapacity, NotFound, StartFailed
from builderd.core.ids import DiskId
from builderd.core.resources import Resources
from builderd.dependencies.model import BuildOutcome
from builderd.files import service as files
from builderd.files.model import Condition
from builderd.idle import job as idle
from builderd.idle import service as wake
from builderd.money.model import Billing, total
from builderd.previews.model import Route, RouteState
from builderd.sandboxes.model import EndCause, SandboxReport, SandboxSpec
from builderd.versions import service as deployments
from builderd.versions.model import VersionStatus

NEW = BundleFile("main.py", b"print('new')\n")
OTHER = "python3 -X dev main.py"
HASTY = Behaviour(exits_at=0, exit_code=3, lines=("no such module",))
DEAF = Behaviour(listens_at=None)


async def serves(world: World, builder: Builder, version: int) -> Builder:
    """Exactly this version runs, on the builder's disk, and visitors are led to it."""
    await world.until(lambda: is_at_rest(world, builder))
    now = await world.builder(builder)
    (sandbox,) = world.running
    route = await world.route(builder)
    assert route is not None
    assert route.destination is not None
    assert (route.state, route.destination.ip) == (RouteState.OPEN, sandbox.ip)
    assert (now.status, now.version, now.handover) == (Status.RUNNING, version, None)
    assert sandbox.spec.disk == now.disk
    assert list(world.engine.known_disks) == [now.disk]
    assert list(world.engine.known) == [sandbox.spec.id]
    await check_ledger(world, builder)
    return now


async def is_at_rest(world: World, builder: Builder) -> bool:
    now = await world.builder(builder)
    return now.settled and now.candidate is None and not now.spare_disks


async def test_a_new_version_takes_over_on_a_copy_of_the_disk(world: World) -> None:
    async with world.reconciling():
        before = await world.create(MAIN, REQUIREMENTS)
        world.engine.known_disks[before.disk].files["data.db"] = b"rows"
        after = await world.deploy(before, NEW, entrypoint=OTHER, env={"A": "1"})
        now = await serves(world, before, 2)
    assert now.disk != before.disk
    assert world.engine.known_disks[now.disk].files == {"main.py": NEW.content, "data.db": b"rows"}
    assert after.status_reason == "version 2 deployed by token acme"
    version = await world.version(now)
    assert version.status is VersionStatus.DEPLOYED
    assert version.settings.entrypoint == OTHER
    (sandbox,) = world.running
    assert sandbox.spec.env["A"] == "1"


async def test_trial_runs_beside_the_old_version_without_egress_or_route(world: World) -> None:
    start = world.engine.start
    trials: list[SandboxSpec] = []
    routed: list[Route | None] = []
    beside: list[list[str | None]] = []

    async def spy(spec: SandboxSpec) -> SandboxReport:
        report = await start(spec)
        routed.append(await world.route(builder))
        beside.append([one.ip for one in world.running])
        trials.append(spec)
        return report

    async with world.reconciling():
        builder = await world.create()
        (old,) = world.running
        world.engine.start = spy  # type: ignore[method-assign]
        await world.deploy(builder, NEW, entrypoint=OTHER)
        await serves(world, builder, 2)
    assert not trials[0].egress
    assert trials[0].disk != builder.disk
    assert old.ip in beside[0]
    assert len(beside[0]) == 2
    assert routed[0] is not None
    assert routed[0].destination is not None
    assert routed[0].destination.ip == old.ip


async def test_visitors_are_held_while_it_takes_over(world: World) -> None:
    states: list[RouteState] = []
    put = world.previews.put

    async def spy(route: Any) -> None:
        states.append(route.state)
        await put(route)

    async with world.reconciling():
        builder = await world.create()
        world.previews.put = spy  # type: ignore[method-assign]
        await world.deploy(builder, NEW)
    assert states == [RouteState.PAUSED, RouteState.OPEN]


async def test_old_version_finishes_its_requests(world: World) -> None:
    asked: list[bool] = []

    async def open_requests(host: str) -> int:
        route = await world.previews.get(host)
        assert route is not None
        assert route.state is RouteState.PAUSED
        asked.append(old.end is None)
        return [2, 1, 0][len(asked) - 1]

    async with world.reconciling():
        builder = await world.create()
        (old,) = world.running
        world.previews.open_requests = open_requests  # type: ignore[method-assign]
        await world.deploy(builder, NEW)
        await serves(world, builder, 2)
    assert asked == [True] * 3


async def test_but_not_for_ever(world: World) -> None:
    async with world.reconciling():
        builder = await world.create()
        begun = world.clock.now()
        (old,) = world.running
        world.previews.open[builder.host] = 1
        await world.deploy(builder, NEW)
        await serves(world, builder, 2)
    assert old.end is not None
    assert old.end.at is not None
    assert 10 <= (old.end.at - begun).total_seconds() < 11


async def fails_at_install(world: World) -> None:
    world.engine.build_outcomes.append(BuildOutcome(1, ("no such package",), 0.1))


async def fails_on_trial(world: World) -> None:
    world.engine.behave(OTHER, HASTY)


async def fails_when_it_takes_over(world: World) -> None:
    world.engine.behave(OTHER, Behaviour(), HASTY)


async def stays_deaf_when_it_takes_over(world: World) -> None:
    world.engine.behave(OTHER, Behaviour(), DEAF)


async def finds_no_room(world: World) -> None:
    world.engine.fail_next("clone_disk", NoCapacity("The machine is full."))


BROKEN: dict[str, tuple[Any, type[BuilderdError], str]] = {
    "install": (fails_at_install, InstallFailed, "no such package"),
    "trial": (fails_on_trial, StartFailed, "exited with code 3"),
    "start": (fails_when_it_takes_over, StartFailed, "no such module"),
    "listening": (stays_deaf_when_it_takes_over, StartFailed, "did not listen on 0.0.0.0:8000"),
    "room": (finds_no_room, NoCapacity, "The machine is full."),
}


@pytest.mark.usefixtures("claims_outlast_fake_time")
@pytest.mark.parametrize("stage", BROKEN)
async def test_where_a_stage_fails_the_old_version_serves_on_with_its_data(world: World, stage: str) -> None:
    break_it, error, words = BROKEN[stage]
    async with world.reconciling():
        builder = await world.create()
        world.engine.known_disks[builder.disk].files["data.db"] = b"rows"
        await break_it(world)
        number = await world.put(builder, NEW, REQUIREMENTS, entrypoint=OTHER)
        await until_over(world, builder, number)
        with pytest.raises(error, match=words) as raised:
            await world.deployed(builder, number)
        now = await serves(world, builder, 1)
        assert raised.value.data == {"uuid": builder.id, "version": 2}
        failed = await world.read(lambda uow: uow.versions.get(builder.id, 2))
        assert failed is not None
        assert failed.status is VersionStatus.FAILED
        assert words in failed.status_reason
        assert world.engine.known_disks[now.disk].files == {"main.py": MAIN.content, "data.db": b"rows"}
        world.engine.behave(OTHER, Behaviour())
        await world.deploy(builder, NEW, entrypoint=OTHER)
        await serves(world, builder, 3)


@pytest.mark.usefixtures("claims_outlast_fake_time")
async def test_trials_that_fail_are_paid_and_reach_the_cap(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, sleep = asyncio.Event(), world.clock.sleep

    async def sleep_once_seen(seconds: float) -> None:
        """Sleeps take fake time alone: the trial would be over before the test looks for it."""
        await seen.wait()
        await sleep(seconds)

    async with world.reconciling():
        builder = await world.create()
        world.engine.behave(OTHER, DEAF)
        monkeypatch.setattr(world.clock, "sleep", sleep_once_seen)
        number = await world.put(builder, NEW, entrypoint=OTHER)
        await world.until(lambda: len(world.running) == 2)
        world.clock.move(12)
        tried = next(one for one in world.running if one.spec.disk != builder.disk)
        world.engine.end(tried.spec.id, exit_code=1)
        seen.set()
        await until_over(world, builder, number)
        await serves(world, builder, 1)
    (trial,) = await world.trials(builder)
    version = await world.read(lambda uow: uow.versions.get(builder.id, 2))
    assert version is not None
    resources = version.settings.resources
    prices = world.application.prices
    assert (
        trial.hourly_rate == Decimal(str(resources.cpu)) * prices.cpu + Decimal(str(resources.memory)) * prices.memory
    )
    # Waiting moves the clock, too: the trial ran for 12 seconds and some.
    assert tried.end is not None
    assert tried.end.at is not None
    assert 12 <= trial.seconds(world.clock.now()) == Decimal(str((tried.end.at - tried.started_at).total_seconds()))
    now, tenant = world.clock.now(), world.caller.tenant_id
    runs = total(await world.segments(builder), now).money
    spent = await world.read(lambda uow: uow.ledger.month_of_tenant(tenant, now))
    assert spent.money >= runs + total([trial], now).money


async def until_over(world: World, builder: Builder, number: int) -> None:
    """Time passes until the version has its outcome."""
    while True:
        version = await world.read(lambda uow: uow.versions.get(builder.id, number))
        assert version is not None
        if version.status is not VersionStatus.PENDING:
            return
        world.clock.move(0.5)
        await asyncio.sleep(0.002)


async def test_trial_failing_without_network_is_no_verdict(world: World) -> None:
    offline = replace(HASTY, lines=("socket.gaierror: [Errno -3] Temporary failure in name resolution",))
    world.engine.behave(OTHER, offline, Behaviour())
    async with world.reconciling():
        builder = await world.create()
        await world.deploy(builder, NEW, entrypoint=OTHER)
        await serves(world, builder, 2)


async def test_crashed_old_version_is_restarted_during_the_install(world: World) -> None:
    building, restarted = asyncio.Event(), asyncio.Event()
    build = world.engine.build_layer

    async def slow(*arguments: Any) -> BuildOutcome:
        building.set()
        await restarted.wait()
        return await build(*arguments)

    async with world.reconciling():
        builder = await world.create()
        world.engine.build_layer = slow  # type: ignore[method-assign, assignment]
        number = await world.put(builder, NEW, REQUIREMENTS)
        await building.wait()
        (old,) = world.running
        world.engine.end(old.spec.id, EndCause.EXITED, 1)
        await world.until_route(builder, RouteState.STARTING)
        world.clock.move(1)
        await world.until_route(builder, RouteState.OPEN)
        assert (await world.builder(builder)).version == 1
        restarted.set()
        await world.deployed(builder, number)
        await serves(world, builder, 2)


async def test_a_version_makes_way_for_a_newer_one(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    async with world.reconciling():
        builder = await world.create()
        world.engine.behave(OTHER, DEAF)
        look_once(monkeypatch)
        second = await world.put(builder, NEW, entrypoint=OTHER)
        await world.until(lambda: len(world.running) == 2)
        third = await world.put(builder, NEW, entrypoint=ENTRYPOINT)
        with pytest.raises(InvalidState, match="Version 2 was given up: version 3 came after it"):
            await world.deployed(builder, second)
        await world.deployed(builder, third)
        await serves(world, builder, 3)


@pytest.mark.parametrize("moment", ["trial", "handover"])
async def test_a_builder_that_is_stopped_meanwhile_keeps_its_old_version_and_data(
    world: World, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    async with world.reconciling():
        builder = await world.create()
        world.engine.behave(OTHER, *([DEAF] if moment == "trial" else [Behaviour(), DEAF]))
        look_once(monkeypatch)
        number = await world.put(builder, NEW, entrypoint=OTHER)
        if moment == "trial":
            await world.until(lambda: len(world.running) == 2)
        else:
            await world.until(lambda: any(one.spec.entrypoint == OTHER and one.spec.egress for one in world.running))
        await world.reached(builders.stop, builder)
        with pytest.raises(InvalidState, match="stopped by token acme"):
            await world.deployed(builder, number)
        await world.until(lambda: is_at_rest(world, builder))
        now = await world.builder(builder)
        assert (now.status, now.version, now.disk) == (Status.STOPPED, 1, builder.disk)
        assert list(world.engine.known_disks) == [builder.disk]
        assert not world.engine.known
        monkeypatch.undo()
        await world.outcome(await world.want(builders.start, builder))
        await serves(world, builder, 1)


@pytest.mark.parametrize("moment", ["trial", "handover"])
async def test_a_builder_that_is_deleted_meanwhile_leaves_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    async with world.reconciling():
        builder = await world.create()
        world.engine.behave(OTHER, *([DEAF] if moment == "trial" else [Behaviour(), DEAF]))
        look_once(monkeypatch)
        await world.put(builder, NEW, entrypoint=OTHER)
        await world.until(lambda: any(one.spec.entrypoint == OTHER for one in world.running))
        await world.reached(builders.delete, builder)
        await world.until_nothing_is_left()


async def test_a_stopped_builder_is_deployed_and_started(world: World) -> None:
    async with world.reconciling():
        builder = await world.create()
        await world.reached(builders.stop, builder)
        await world.deploy(builder, NEW)
        await serves(world, builder, 2)


async def test_a_stopped_builder_whose_new_version_fails_stays_stopped_on_its_old_one(world: World) -> None:
    async with world.reconciling():
        builder = await world.create()
        await world.reached(builders.stop, builder)
        world.engine.behave(OTHER, HASTY)
        with pytest.raises(StartFailed):
            await world.deploy(builder, NEW, entrypoint=OTHER)
        await world.until(lambda: is_at_rest(world, builder))
        now = await world.builder(builder)
        assert (now.status, now.desired, now.version, now.disk) == (Status.STOPPED, Desired.STOPPED, 1, builder.disk)
        assert list(world.engine.known_disks) == [builder.disk]
        await world.until_route(builder, RouteState.STOPPED)
        await check_ledger(world, builder)


async def test_a_stopped_builder_whose_larger_version_fails_pays_for_the_disk_that_it_has(world: World) -> None:
    async with world.reconciling():
        builder = await world.create()
        await world.reached(builders.stop, builder)
        before = (await world.segments(builder))[-1].hourly_rate
        world.engine.behave(OTHER, Behaviour(exits_at=2, exit_code=3))
        with pytest.raises(StartFailed):
            await world.deploy(builder, NEW, entrypoint=OTHER, resources={"disk": 100})
        await world.until(lambda: is_at_rest(world, builder))
        assert (await world.segments(builder))[-1].hourly_rate == before


async def test_a_builder_that_is_stopped_while_a_larger_version_takes_over_pays_for_the_disk_that_it_has(
    world: World,
) -> None:
    async with world.reconciling():
        builder = await world.create()
        gate, taken = asyncio.Event(), asyncio.Event()
        clone = world.engine.clone_disk
        trials = [True]

        async def held(source: DiskId, target: DiskId, size_bytes: int, *, for_backup: bool = False) -> None:
            if trials:  # the first copy is the trial's
                trials.pop()
            else:
                taken.set()
                await gate.wait()
            await clone(source, target, size_bytes, for_backup=for_backup)

        world.engine.clone_disk = held  # type: ignore[method-assign]
        await world.put(builder, NEW, resources={"disk": 100})
        await world.until(taken.is_set)
        await world.want(builders.stop, builder)
        gate.set()
        await world.until(lambda: is_at_rest(world, builder))
        now, last = await world.builder(builder), (await world.segments(builder))[-1]
        assert (now.status, now.version, last.billing) == (Status.STOPPED, 1, Billing.STOPPED)
        has = (await world.version(now)).settings.resources
        assert last.hourly_rate == world.application.prices.hourly_rate(has, Billing.STOPPED)


async def test_request_during_a_failing_deploy_wakes_the_old_version(world: World) -> None:
    async with world.reconciling():
        builder = await world.create()
        await world.reached(builders.stop, builder)
        idled = await world.change(builder, stop_kind=StopKind.IDLE)
        world.application.signals.desired_changed(idled.id)
        await world.until_route(builder, RouteState.ASLEEP)
        world.engine.behave(OTHER, Behaviour(listens_at=None))
        sleep_in_real_time(world)
        number = await world.put(builder, NEW, entrypoint=OTHER)
        await world.until(lambda: world.running)
        await world.until_route(builder, RouteState.PAUSED)
        hearing = asyncio.create_task(idle.watch(world.application))
        world.previews.pause_request(builder.host)
        await asyncio.sleep(0.02)
        world.engine.end(world.running[0].spec.id, exit_code=3)
        with pytest.raises(StartFailed):
            await world.deployed(builder, number)
        await world.until_route(builder, RouteState.OPEN)
        await serves(world, builder, 1)
        hearing.cancel()


def sleep_in_real_time(world: World) -> None:
    """Wait in real time, so that the fake clock does not pass the start's time limit meanwhile."""

    async def sleep(seconds: float) -> None:
        await asyncio.sleep(min(seconds, 0.01))
        world.clock.move(min(seconds, 0.01))

    world.clock.sleep = sleep  # type: ignore[method-assign]


async def test_a_builder_that_never_was_up_is_put_right_by_a_new_version(world: World) -> None:
    world.engine.behave(OTHER, HASTY)
    async with world.reconciling():
        builder = await world.ask(entrypoint=OTHER)
        with pytest.raises(StartFailed):
            await world.outcome(builder)
        with pytest.raises(StartFailed):
            await world.deploy(builder, NEW)
        assert (await world.builder(builder)).status is Status.FAILED
        await world.deploy(builder, NEW, entrypoint=ENTRYPOINT)
        await serves(world, builder, 3)


async def test_settings_that_the_app_need_not_know_take_effect_without_a_new_version(world: World) -> None:
    async with world.reconciling():
        builder = await world.create()
        now = await world.configure(builder, auto_stop_interval=15)
        assert (now.auto_stop_interval, now.version, now.generation) == (15, 1, 1)
        assert world.called("start") == 1


async def test_other_settings_are_a_new_version_of_the_same_code(world: World) -> None:
    async with world.reconciling():
        builder = await world.create()
        world.engine.known_disks[builder.disk].files["main.py"] = b"the app has written here"
        await world.configure(builder, env={"A": "2"}, resources={"cpu": 2, "memory": 2, "disk": 4})
        now = await serves(world, builder, 2)
        assert world.engine.known_disks[now.disk].files == {"main.py": b"the app has written here"}
        assert world.engine.known_disks[now.disk].size_bytes == Resources(2, 2, 4).disk_bytes
        with pytest.raises(InvalidState, match="cannot shrink"):
            await world.configure(builder, resources={"disk": 3})


async def test_settings_of_a_builder_that_rests_are_those_of_its_next_start(world: World) -> None:
    async with world.reconciling():
        builder = await world.create()
        await world.reached(builders.stop, builder)
        now = await world.configure(builder, env={"A": "2"}, resources={"disk": 5})
        assert (now.version, now.desired) == (2, Desired.STOPPED)
        await world.outcome(await world.want(builders.start, builder))
        await serves(world, builder, 2)
        (sandbox,) = world.running
        assert sandbox.spec.env["A"] == "2"
        assert world.engine.known_disks[now.disk].size_bytes == Resources(1, 1, 5).disk_bytes


async def test_rollback_target_must_have_been_up(world: World) -> None:
    world.engine.behave(OTHER, HASTY)
    async with world.reconciling():
        builder = await world.create()
        with pytest.raises(StartFailed):
            await world.deploy(builder, NEW, entrypoint=OTHER)
        with pytest.raises(InvalidState, match="never was up"):
            await world.roll_back(builder, 2)


async def test_a_job_is_not_tried_and_runs_once(world: World) -> None:
    world.engine.behave(OTHER, Behaviour(exits_at=3, exit_code=0))
    async with world.reconciling():
        builder = await world.outcome(await world.ask_job())
        await world.deploy(builder, NEW, entrypoint=OTHER)
        now = await world.until_status(builder, Status.COMPLETED)
        assert now.version == 2
        assert world.called("start") == 2


async def test_switch_uses_the_filled_disk(world: World) -> None:
    from builderd.core.ids import DiskId, new_id

    disk = DiskId(new_id())
    async with world.reconciling():
        builder = await world.create()
        await world.engine.clone_disk(builder.disk, disk, 3 << 30)
        world.engine.known_disks[disk].files["data.db"] = b"of long ago"
        world.engine.known_disks[builder.disk].files["data.db"] = b"of today"
        code = await world.version(builder)

        def switch(uow: Any) -> Builder:
            found = deployments.changeable(uow, world.application, world.caller, builder.id)
            now = world.clock.now()
            return deployments.switch(uow, world.application, world.caller, found, disk, code, now).builder

        await world.application.commit(switch)
        await world.deployed(builder, 2)
        now = await serves(world, builder, 2)
    assert now.disk == disk
    assert world.engine.known_disks[disk].files["data.db"] == b"of long ago"
    assert world.called("start") == 2


async def test_unstarted_settings_are_dropped_or_pending(
    world: World,
) -> None:
    async with world.reconciling():
        builder = await world.create()
        await world.reached(builders.stop, builder)
        for value in ("2", "3"):
            builder = await world.configure(builder, env={"A": value})
        number = await world.put(builder, NEW)
        await world.deployed(builder, number)
        await serves(world, builder, 4)
    made = await world.read(lambda uow: uow.versions.list(builder.id))
    assert [(one.number, one.status) for one in made] == [
        (4, VersionStatus.DEPLOYED),
        (3, VersionStatus.FAILED),
        (2, VersionStatus.FAILED),
        (1, VersionStatus.DEPLOYED),
    ]
    assert made[1].status_reason == "Version 3 was never started: version 4 came after it."


async def test_outcome_of_a_version_is_an_event(world: World) -> None:
    world.engine.behave(OTHER, replace(HASTY, lines=("secret of the app",)))
    async with world.reconciling():
        builder = await world.create()
        with pytest.raises(StartFailed):
            await world.deploy(builder, NEW, entrypoint=OTHER)
        await world.roll_back(builder, 1)
    told = [event for event in await world.events(builder) if event.type.startswith("version.")]
    assert [(event.type, event.details["version"]) for event in told] == [
        ("version.deployed", 1),
        ("version.created", 2),
        ("version.failed", 2),
        ("version.created", 3),
        ("version.deployed", 3),
    ]
    assert told[2].details["code"] == "start_failed"
    assert told[2].reason == "The app ended before it listened on 0.0.0.0:8000: exited with code 3."
    assert told[4].reason == "version 3 rolled back to version 1 by token acme"


async def held_up(world: World, builder: Builder) -> asyncio.Event:
    """A version takes over from here on, until the event is set."""
    go_on, asked = asyncio.Event(), asyncio.Event()

    async def open_requests(host: str) -> int:
        asked.set()
        await go_on.wait()
        return 0

    world.previews.open_requests = open_requests  # type: ignore[method-assign]
    await world.put(builder, NEW)
    await asked.wait()
    return go_on


async def test_a_change_waits_for_the_version_that_takes_over(world: World) -> None:
    async with world.reconciling():
        builder = await world.create()
        go_on = await held_up(world, builder)
        with pytest.raises(InvalidState, match="takes over at this moment"):
            await world.put(builder, MAIN)
        later = asyncio.create_task(
            outcomes.after_take_over(world.application, builder.id, lambda: world.put(builder, MAIN, env={"A": "3"}))
        )
        await asyncio.sleep(0.05)
        assert not later.done()
        go_on.set()
        await world.deployed(builder, await later)
        await serves(world, builder, 3)


async def test_but_not_for_longer_than_visitors_do(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outcomes, "MAX_WAIT_SECONDS", 0.05)
    async with world.reconciling():
        builder = await world.create()
        go_on = await held_up(world, builder)
        with pytest.raises(InvalidState, match="try again") as refused:
            await outcomes.after_take_over(world.application, builder.id, lambda: world.put(builder, MAIN))
        assert refused.value.retry_after
        go_on.set()
        await serves(world, builder, 2)


async def test_external_settings_change_during_a_take_over(world: World) -> None:
    async with world.reconciling():
        builder = await world.create()
        go_on = await held_up(world, builder)
        changed = await world.configure(builder, auto_stop_interval=7, visibility=Visibility.PRIVATE)
        assert changed.auto_stop_interval == 7
        go_on.set()
        now = await serves(world, builder, 2)
    assert (now.auto_stop_interval, now.visibility) == (7, Visibility.PRIVATE)


async def is_private(world: World, builder: Builder) -> bool:
    """Return the desired visibility of the preview, and the actual one."""
    route, now = await world.route(builder), await world.builder(builder)
    assert route is not None
    assert (route.token_hash is not None) is (now.visibility is Visibility.PRIVATE)
    return route.token_hash is not None


@pytest.mark.parametrize("change", [{"entrypoint": OTHER}, {"env": {"SAFE": "1"}}])
async def test_preview_becomes_public_with_its_version(world: World, change: dict[str, Any]) -> None:
    async with world.reconciling():
        builder = await world.create(visibility=Visibility.PRIVATE)
        (old,) = world.running
        shown: list[str] = []
        put = world.previews.put

        async def watched(route: Route) -> None:
            if route.token_hash is None and route.destination is not None:
                shown.append(route.destination.ip)
            await put(route)

        world.previews.put = watched  # type: ignore[method-assign]
        if "env" in change:
            await world.configure(builder, visibility=Visibility.PUBLIC, **change)
        else:
            await world.deploy(builder, NEW, visibility=Visibility.PUBLIC, **change)
        await serves(world, builder, 2)
        await world.until(lambda: is_public(world, builder))
    assert shown
    assert old.ip not in shown


async def is_public(world: World, builder: Builder) -> bool:
    return not await is_private(world, builder)


async def test_preview_stays_private_if_its_version_fails(world: World) -> None:
    async with world.reconciling():
        builder = await world.create(visibility=Visibility.PRIVATE)
        world.engine.behave(OTHER, HASTY)
        with pytest.raises(StartFailed):
            await world.deploy(builder, NEW, entrypoint=OTHER, visibility=Visibility.PUBLIC)
        await serves(world, builder, 1)
        assert await is_private(world, builder)
        await world.deploy(builder, NEW, entrypoint=ENTRYPOINT)
        await serves(world, builder, 3)
        assert await is_private(world, builder)


@pytest.mark.parametrize(("later", "stays_private"), [({}, False), ({"visibility": Visibility.PRIVATE}, True)])
async def test_a_version_that_comes_after_the_one_that_was_to_be_shown_is_shown_unless_it_says_otherwise(
    world: World, monkeypatch: pytest.MonkeyPatch, later: dict[str, Any], stays_private: bool
) -> None:
    async with world.reconciling():
        builder = await world.create(visibility=Visibility.PRIVATE)
        world.engine.behave(OTHER, DEAF)
        look_once(monkeypatch)
        await world.put(builder, NEW, entrypoint=OTHER, visibility=Visibility.PUBLIC)
        await world.until(lambda: len(world.running) == 2)
        assert await is_private(world, builder)
        await world.deploy(builder, NEW, entrypoint=ENTRYPOINT, **later)
        await serves(world, builder, 3)
        await world.until(lambda: is_private(world, builder) if stays_private else is_public(world, builder))


async def test_older_code_is_not_shown_in_place_of_the_version_that_was_to_be(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with world.reconciling():
        builder = await world.create(visibility=Visibility.PRIVATE)
        world.engine.behave(OTHER, DEAF)
        look_once(monkeypatch)
        await world.put(builder, NEW, entrypoint=OTHER, visibility=Visibility.PUBLIC)
        await world.until(lambda: len(world.running) == 2)
        await world.roll_back(builder, 1)
        await serves(world, builder, 3)
        assert await is_private(world, builder)


async def test_a_file_that_is_put_there_while_a_version_takes_over_lasts(world: World) -> None:
    async def content() -> AsyncIterator[bytes]:
        yield b"put"

    async def write(path: str) -> None:
        await files.write(
            world.application,
            builder.tenant_id,
            builder.id,
            path,
            files.NewContent(content()),
            Condition(),
        )

    async with world.reconciling():
        builder = await world.create()
        go_on = await held_up(world, builder)
        writing = asyncio.create_task(write("during.txt"))
        await asyncio.sleep(0.05)
        assert not writing.done()
        go_on.set()
        await writing
        now = await serves(world, builder, 2)
        assert world.engine.known_disks[now.disk].files["during.txt"] == b"put"


async def test_a_command_runs_beside_the_version_that_takes_over(world: World) -> None:
    """And not beside the one that is on its way out, with which it would end."""
    async with world.reconciling():
        builder = await world.create()
        go_on = await held_up(world, builder)
        asking = asyncio.create_task(wake.awake(world.application, builder.id))
        await asyncio.sleep(0.05)
        assert not asking.done()
        go_on.set()
        assert (await asking).version == 2


async def test_file_change_during_a_disk_copy_is_refused(world: World) -> None:
    async def content() -> AsyncIterator[bytes]:
        yield b"begun on the old disk"
        await world.deploy(builder, NEW)

    async with world.reconciling():
        builder = await world.create()
        with pytest.raises((InvalidState, NotFound)):
            await files.write(
                world.application,
                builder.tenant_id,
                builder.id,
                "late.txt",
                files.NewContent(content()),
                Condition(),
            )
        await serves(world, builder, 2)


async def test_a_disk_that_grows_while_the_app_is_being_stopped_is_paid_from_its_end(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop, begun, go_on = world.engine.stop, asyncio.Event(), asyncio.Event()

    async def slow(*args: Any) -> Any:
        begun.set()
        await go_on.wait()
        return await stop(*args)

    monkeypatch.setattr(world.engine, "stop", slow)
    async with world.reconciling():
        builder = await world.create(resources=Resources(1, 1, 3))
        await world.want(builders.stop, builder)
        await begun.wait()
        await world.configure(builder, resources={"disk": 100})
        world.clock.move(10)
        go_on.set()
        await world.until_status(builder, Status.STOPPED)
    ran, rests = (await world.segments(builder))[-2:]
    assert (ran.billing, rests.billing) == (Billing.RUNNING, Billing.STOPPED)
    assert ran.end is not None
    assert (ran.end - ran.start).total_seconds() >= 10
    assert rests.hourly_rate == Decimal("0.55")
