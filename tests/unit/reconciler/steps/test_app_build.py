"""Builds: once a version, after the review, and never again for what is on the disk."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest
from tests.application import MAIN, World
from tests.unit.reconciler.mortal import Killed, living

from builderd.builders import service as builders
from builderd.builders.model import Builder, Status
from builderd.code.model import BundleFile
from builderd.core.errors import (
    BuildFailed,
    EngineUnavailable,
    InvalidState,
    NoCapacity,
    QuotaExceeded,
    StoreUnavailable,
)
from builderd.core.resources import GB
from builderd.database.unit_of_work import UnitOfWork
from builderd.dependencies.model import BuildOutcome, LayerPlan
from builderd.engine.port import Progress
from builderd.money.model import OpenBuild
from builderd.reconciler import builds
from builderd.review.model import ReviewFailed
from builderd.tokens.limits import TenantLimit, TenantLimits
from builderd.versions import service as deployments

COMMAND = "npm run build"
OTHER = BundleFile("other.txt", b"other")


def files_on_disk(world: World, builder: Builder) -> dict[str, bytes]:
    return world.engine.known_disks[builder.disk].files


async def test_result_of_the_build_is_among_the_files_of_the_app(world: World) -> None:
    async with world.reconciling():
        builder = await world.create(MAIN, build=COMMAND)
        assert files_on_disk(world, builder)["built.txt"] == COMMAND.encode()
        version = await world.version(builder)
        assert version.build_key
        stages = [event.details["stage"] for event in await world.events(builder) if event.type == "stage.finished"]
        assert stages.index("install") != stages.index("build")


async def test_start_restart_and_purge_build_nothing_again(world: World) -> None:
    async with world.reconciling():
        builder = await world.create(MAIN, build=COMMAND)
        assert world.called("build_layer") == 1
        results, size = await deployments.remove(world.application, world.caller, builder.id)
        assert (results, size > 0) == (1, True)
        for command in (builders.stop, builders.start, builders.restart):
            builder = await world.reached(command, builder)
        assert builder.status is Status.RUNNING
        assert world.called("build_layer") == 1
        assert "built.txt" in files_on_disk(world, builder)


async def test_same_files_of_a_tenant_are_built_once_and_those_of_another_again(world: World) -> None:
    async with world.reconciling():
        await world.create(MAIN, build=COMMAND)
        await world.create(MAIN, build=COMMAND, name="same")
        assert world.called("build_layer") == 1
        await world.create(MAIN, build=COMMAND, env={"A": "1"}, name="other-env")
        assert world.called("build_layer") == 2
        world.caller = await world.tenant("other")
        await world.create(MAIN, build=COMMAND, name="foreign")
        assert world.called("build_layer") == 3


async def test_next_version_replaces_what_the_last_build_made(world: World) -> None:
    async with world.reconciling():
        builder = await world.create(MAIN, build=COMMAND)
        builder = await world.deploy(builder, MAIN, OTHER, build="make")
        assert files_on_disk(world, builder)["built.txt"] == b"make"
        builder = await world.deploy(builder, MAIN, build="")
        assert "built.txt" not in files_on_disk(world, builder)
        builder = await world.roll_back(builder, 1)
        assert files_on_disk(world, builder)["built.txt"] == COMMAND.encode()
        assert world.called("build_layer") == 2


async def test_failed_build_shows_its_last_lines_and_the_version_that_serves_stays(world: World) -> None:
    async with world.reconciling():
        builder = await world.create(MAIN, build=COMMAND)
        world.engine.build_outcomes.append(BuildOutcome(2, ("src/a.ts: error TS1", "2 errors"), 1.0))
        with pytest.raises(BuildFailed) as failure:
            await world.deploy(builder, MAIN, OTHER)
        message = failure.value.message
        assert "exit code 2" in message
        assert "src/a.ts: error TS1\n2 errors" in message
        assert "builderd logs my-api --stream build" in message
        builder = await world.builder(builder)
        assert (builder.version, builder.status) == (1, Status.RUNNING)


@pytest.mark.parametrize(
    ("outcome", "words"),
    [
        (BuildOutcome(137, (), 1.0, out_of_memory=True), "out of memory"),
        (BuildOutcome(1, (), 1.0, timed_out=True), "limits.build_timeout"),
    ],
)
async def test_message_names_the_limit_that_ended_the_build(world: World, outcome: BuildOutcome, words: str) -> None:
    world.engine.build_outcomes.append(outcome)
    async with world.reconciling():
        with pytest.raises(BuildFailed, match=words):
            await world.create(MAIN, build=COMMAND)


async def test_nothing_is_built_before_the_review_has_passed(world: World) -> None:
    async with world.reconciling():
        evil = BundleFile("main.py", b"open_shell()\n")
        world.scanner.dislikes = {"open_shell": "MAL-reverse-shell"}
        with pytest.raises(ReviewFailed):
            await world.create(evil, build=COMMAND)
        assert world.called("build_layer") == 0


async def test_another_version_cancels_a_build(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[str] = []
    begun = asyncio.Event()
    build_layer = world.engine.build_layer

    async def build(plan: LayerPlan, progress: Progress) -> BuildOutcome:
        if plan.steps[0].argv[-1] != "endless":
            return await build_layer(plan, progress)
        begun.set()
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            ended.append(plan.key)
            raise
        return BuildOutcome(0, (), 0.0)

    monkeypatch.setattr(world.engine, "build_layer", build)
    async with world.reconciling():
        builder = await world.create(MAIN, build=COMMAND)
        await world.put(builder, MAIN, build="endless")
        await begun.wait()
        builder = await world.deploy(builder, MAIN, build="make")
        assert len(ended) == 1
        assert files_on_disk(world, builder)["built.txt"] == b"make"


async def test_stop_cancels_the_build_of_a_candidate_which_is_charged(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended, begun = asyncio.Event(), asyncio.Event()

    async def build(plan: LayerPlan, progress: Progress) -> BuildOutcome:
        begun.set()
        try:
            await asyncio.sleep(3600)
        finally:
            world.clock.move(1800)
            ended.set()
        return BuildOutcome(0, (), 0.0)

    async with world.reconciling():
        builder = await world.create(MAIN)
        monkeypatch.setattr(world.engine, "build_layer", build)
        number = await world.put(builder, MAIN, build="endless")
        await begun.wait()
        builder = await world.reached(builders.stop, builder)
        async with asyncio.timeout(20):
            await ended.wait()
        assert (builder.version, builder.candidate) == (1, None)
        with pytest.raises(InvalidState):
            await world.deployed(builder, number)

        async def charged() -> bool:
            return any(one.seconds(world.clock.now()) >= 1800 for one in await world.trials(builder))

        await world.until(charged)


async def test_builds_are_charged_and_count_for_the_cap(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    build_layer = world.engine.build_layer

    async def build(plan: LayerPlan, progress: Progress) -> BuildOutcome:
        if plan.app is not None:
            world.clock.move(3600)
            world.engine.build_outcomes.append(BuildOutcome(2, (), 3600))
        return await build_layer(plan, progress)

    monkeypatch.setattr(world.engine, "build_layer", build)
    prices = world.application.prices
    rate = 2 * (prices.cpu + prices.memory)
    async with world.reconciling():
        builder = await world.create(MAIN)
        capped = await world.change(builder, spending_cap=rate)
        with pytest.raises((BuildFailed, InvalidState)):  # the cap may stop the builder before the failure is recorded
            await world.deploy(capped, MAIN, build=COMMAND)
        await world.until_reason(builder, "spending cap")
        trials = [one for one in await world.trials(builder) if one.seconds(world.clock.now()) >= 3600]
        assert {one.hourly_rate for one in trials} == {rate}
        with pytest.raises(QuotaExceeded):
            await world.deploy(capped, MAIN, build=COMMAND)


async def test_build_cut_by_a_kill_of_the_service_is_charged_as_far_as_it_was_seen(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(builds, "SEEN_INTERVAL", 0.01)
    seen: list[datetime] = []

    async def build(plan: LayerPlan, progress: Progress) -> BuildOutcome:
        world.clock.move(90)
        while not await world.read(lambda uow: [one for one in uow.open_builds.all() if one.seen_at > one.started_at]):
            await asyncio.sleep(0.01)
        seen.extend(one.seen_at for one in await world.read(lambda uow: uow.open_builds.all()))
        life._store.dead.set()
        raise Killed

    build_layer = world.engine.build_layer
    monkeypatch.setattr(world.engine, "build_layer", build)
    async with living(world, "never") as life:
        builder = await life.world.ask(MAIN, build=COMMAND)
        await world.until(lambda: life.is_over)
    monkeypatch.setattr(world.engine, "build_layer", build_layer)
    assert await world.trials(builder) == []
    world.clock.move(24 * 3600)
    async with living(world) as life:
        await life.world.until_status(builder, Status.RUNNING)
    first, *_ = await world.trials(builder)
    assert first.end == seen[0]
    assert first.seconds(world.clock.now()) == 90
    assert first.hourly_rate == 2 * (world.application.prices.cpu + world.application.prices.memory)
    assert await world.read(lambda uow: uow.open_builds.all()) == []
    async with living(world):
        pass
    assert [one.start for one in await world.trials(builder)].count(first.start) == 1


async def test_charge_for_a_cut_build_is_bounded_by_the_time_that_builds_have(world: World) -> None:
    async with world.reconciling():
        builder = await world.create(MAIN)
    now = world.clock.now()
    cut = OpenBuild("a", builder.tenant_id, builder.id, now, now + timedelta(days=365))
    await world.application.store.write(lambda uow: uow.open_builds.add(cut))
    await builds.close_cut_builds(world.application)
    [trial] = await world.trials(builder)
    assert trial.seconds(now) == round(world.application.limits.build_timeout)


@pytest.mark.parametrize(
    "fault",
    [NoCapacity("The store is full."), OSError(errno.ENOSPC, "No space left on device"), EngineUnavailable("killed")],
    ids=["store", "host's disk", "monitor"],
)
async def test_fault_of_the_machine_during_a_build_costs_nothing(world: World, fault: Exception) -> None:
    builder = await world.ask(MAIN)

    async def build() -> BuildOutcome:
        world.clock.move(60)
        raise fault

    with pytest.raises(type(fault)):
        await builds.BuildCharges(world.application).charged(builder, build)
    assert await world.trials(builder) == []
    world.engine.fail_next("build_layer", NoCapacity("The store is full."))
    async with world.reconciling():
        with pytest.raises(NoCapacity):
            await world.create(MAIN, build=COMMAND, name="second")
    for builder in await world.read(lambda uow: uow.builders.of_tenant(world.caller.tenant_id, deleted=False)):
        assert await world.trials(builder) == []
    assert await world.read(lambda uow: uow.open_builds.all()) == []


async def test_end_of_a_build_that_the_store_did_not_take_is_written_later_and_hides_no_fault(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(builds, "RETRY_INTERVAL", 0.01)
    builder, write, tried = await world.ask(MAIN), world.application.store.write, 0

    async def full(work: Callable[[UnitOfWork], Any]) -> Any:
        nonlocal tried
        tried += 1
        raise StoreUnavailable("The disk is full.")

    async def build(outcome: BuildOutcome | Exception) -> BuildOutcome:
        world.clock.move(60)
        monkeypatch.setattr(world.application.store, "write", full)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    charges = builds.BuildCharges(world.application)
    with pytest.raises(NoCapacity, match="The store is full"):
        await charges.charged(builder, lambda: build(NoCapacity("The store is full.")))
    await world.until(lambda: tried > 2)
    monkeypatch.setattr(world.application.store, "write", write)
    await _nothing_open(world)
    assert await world.trials(builder) == []
    built = BuildOutcome(0, (), 60.0)
    assert await charges.charged(builder, lambda: build(built)) == built
    world.clock.move(600)
    monkeypatch.setattr(world.application.store, "write", write)
    await _nothing_open(world)
    assert [one.seconds(world.clock.now()) for one in await world.trials(builder)] == [60]


async def _nothing_open(world: World) -> None:
    async def is_closed() -> bool:
        return await world.read(lambda uow: uow.open_builds.all()) == []

    await world.until(is_closed)


async def test_results_count_for_the_limit_of_layers(world: World) -> None:
    limits = TenantLimits(default=TenantLimit(layers=0.5))
    world.application = replace(world.application, tenant_limits=limits)
    async with world.reconciling():
        builder = await world.create(MAIN, build=COMMAND)
        version = await world.version(builder)
        assert version.build_key
        world.engine.layer_bytes[version.build_key] = GB
        with pytest.raises(BuildFailed, match=r"tenant\.layers"):
            await world.create(MAIN, OTHER, build=COMMAND, name="more")
        await world.want(builders.delete, builder)


async def test_settings_alone_keep_the_build_command(world: World) -> None:
    async with world.reconciling():
        builder = await world.create(MAIN, build=COMMAND)
        builder = await world.configure(builder, env={"B": "2"})
        assert (await world.version(builder)).settings.build == COMMAND
        assert world.called("build_layer") == 2  # its variables may be in what it makes
