"""The first disk is made beside the review, and is recorded or gone whatever comes in between."""

from __future__ import annotations

import asyncio

import pytest
from tests.application import MAIN, REQUIREMENTS, World
from tests.unit.reconciler.ledgers import check_ledger
from tests.unit.reconciler.mortal import living

from builderd.domain.builders import Builder, Status
from builderd.domain.bundles import BundleFile
from builderd.domain.errors import InstallFailed, InvalidState, MachineFault, NoCapacity, ReviewFailed
from builderd.domain.files import Condition
from builderd.domain.layers import BuildOutcome
from builderd.domain.prices import Billing
from builderd.domain.steps import Observation
from builderd.reconciler.core.claim import LEASE
from builderd.reconciler.core.observe import WorkItem
from builderd.reconciler.loop import reconciler as reconciling
from builderd.reconciler.stages.first_start import FirstStart, PlannedStart
from builderd.services import backups, builders, files

EVIL = BundleFile("main.py", b"open_shell()\n")


@pytest.fixture(autouse=True)
def dislikes(world: World) -> None:
    world.scanner.dislikes = {"open_shell": "MAL-reverse-shell"}


async def refused(world: World, *bundle: BundleFile) -> Builder:
    builder = await world.ask(*(bundle or (EVIL,)))
    with pytest.raises(ReviewFailed):
        await world.outcome(builder)
    return builder


async def test_the_first_disk_is_made_while_the_review_goes_on(world: World) -> None:
    world.scanner.open.clear()
    async with world.reconciling():
        builder = await world.ask(MAIN)
        await world.until(lambda: world.called("put_bundle") == 1)
        assert await world.records(builder) == []
        world.scanner.open.set()
        await world.outcome(builder)
    assert (world.called("create_disk"), world.called("put_bundle")) == (1, 1)
    assert [one.billing for one in await world.segments(builder)] == [Billing.STOPPED, Billing.RUNNING]
    stages = [one.details["stage"] for one in await world.events(builder) if one.type.startswith("stage.")]
    assert stages == ["review", "install", "start", "start", "qa"]
    await check_ledger(world, builder)


@pytest.mark.parametrize("files", [(MAIN,), (MAIN, REQUIREMENTS)])
@pytest.mark.parametrize("command", [builders.stop, builders.delete])
async def test_a_builder_that_is_not_wanted_during_its_review_leaves_no_disk(
    world: World, command: builders.Command, files: tuple[object, ...]
) -> None:
    world.scanner.open.clear()
    async with world.reconciling():
        builder = await world.ask(*files)  # type: ignore[arg-type]
        await world.until(lambda: world.called("put_bundle") == 1)
        await world.reached(command, builder)
        await world.until(lambda: not world.engine.disks)
    await check_ledger(world, builder)


@pytest.mark.parametrize("bundle", [(EVIL,), (EVIL, REQUIREMENTS)])
async def test_a_refused_version_leaves_no_disk(world: World, bundle: tuple[BundleFile, ...]) -> None:
    async with world.reconciling():
        await refused(world, *bundle)
        assert (world.called("create_disk"), world.engine.disks) == (1, {})


@pytest.mark.parametrize("bundle", [(MAIN,), (MAIN, REQUIREMENTS)])
async def test_a_planned_start_that_is_not_wanted_any_more_begins_no_sandbox(
    world: World, monkeypatch: pytest.MonkeyPatch, bundle: tuple[BundleFile, ...]
) -> None:
    plan = FirstStart.plan

    async def plan_and_stop(self: FirstStart, item: WorkItem, observation: Observation) -> PlannedStart | None:
        planned = await plan(self, item, observation)
        await world.want(builders.stop, item.builder)
        return planned

    monkeypatch.setattr(FirstStart, "plan", plan_and_stop)
    async with world.reconciling():
        await world.until_status(await world.ask(*bundle), Status.STOPPED)
    assert world.called("start") == 0


async def test_files_and_backups_of_a_disk_that_may_still_go_are_refused(world: World) -> None:
    async def content() -> object:
        yield b"new"

    world.scanner.open.clear()
    async with world.reconciling():
        builder = await world.ask(MAIN)
        await world.until(lambda: world.called("put_bundle") == 1)
        where, new = (world.application, builder.tenant_id, builder.id), files.NewContent(content(), 3)  # type: ignore[arg-type]
        with pytest.raises(InvalidState, match="has no files yet"):
            await files.write(*where, "new.txt", new, Condition())
        with pytest.raises(InvalidState, match="has no files yet"):
            await files.list_page(*where, "", 0, 10)
        with pytest.raises(InvalidState, match="no files to back up"):
            await backups.ask(world.application, world.caller, builder.id)
        world.scanner.open.set()
        await world.outcome(builder)
        await files.write(*where, "new.txt", new, Condition())
        await backups.ask(world.application, world.caller, builder.id)


async def test_a_write_that_is_refused_does_not_mark_a_failed_builder_as_one_with_data(world: World) -> None:
    async with world.reconciling():
        builder = await refused(world)
        with pytest.raises(InvalidState):
            await files.delete(
                world.application, builder.tenant_id, builder.id, "x", condition=Condition(), recursive=False
            )
    assert not (await world.builder(builder)).disk_has_data


@pytest.mark.parametrize("point", ["Review.done", "Review.recorded"])
async def test_a_refused_version_leaves_no_disk_wherever_its_service_is_killed(world: World, point: str) -> None:
    async with living(world, point) as life:
        builder = await life.world.ask(EVIL)
        await world.until(lambda: life.is_over)
    assert world.called("create_disk") == 1
    assert not world.engine.disks
    world.clock.move(LEASE.total_seconds())
    async with living(world) as life:
        await life.world.until_status(builder, Status.FAILED)
        await world.until(lambda: not life.works)
    assert not world.engine.disks


@pytest.mark.parametrize("point", ["Settle.done", "Settle.recorded"])
async def test_a_stop_leaves_no_unrecorded_disk_wherever_its_service_is_killed(world: World, point: str) -> None:
    async with living(world, "Review.done") as life:
        builder = await life.world.ask(MAIN, REQUIREMENTS)
        await world.until(lambda: life.is_over)
    await world.want(builders.stop, builder)
    world.clock.move(LEASE.total_seconds())
    async with living(world, point) as life:
        await world.until(lambda: life.is_over)
    assert not world.engine.disks


async def test_space_stays_held_for_a_step_that_is_tried_again(world: World) -> None:
    world.scanner.faults = [MachineFault("the helper died")]
    async with world.reconciling():
        await world.ask(MAIN)
        await world.until(lambda: world.called("hold_disk") == 2)
    of_disk = [name for name, _ in world.engine.calls if name in ("hold_disk", "create_disk", "delete_disk")]
    assert of_disk == ["hold_disk", "create_disk", "delete_disk", "hold_disk"]


async def test_space_of_a_builder_that_fails_is_not_held(world: World) -> None:
    world.engine.build_outcomes.append(BuildOutcome(1, ("no such package",), 1))
    async with world.reconciling():
        with pytest.raises(InstallFailed):
            await world.create(MAIN, REQUIREMENTS)
    assert world.called("hold_disk") == 1


async def test_space_is_held_again_for_a_builder_that_was_stopped_before_its_disk_was_recorded(world: World) -> None:
    world.scanner.open.clear()
    async with world.reconciling():
        builder = await world.ask(MAIN)
        await world.until(lambda: world.called("put_bundle") == 1)
        await world.reached(builders.stop, builder)
        await world.want(builders.start, builder)
    assert world.called("hold_disk") == 2


async def test_a_disk_that_cannot_be_deleted_does_not_hide_why_the_installation_failed(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.engine.build_outcomes.append(BuildOutcome(1, ("no such package",), 1))

    async def refuse(_: object) -> None:
        raise OSError("busy")

    monkeypatch.setattr(world.engine, "delete_disk", refuse)
    async with world.reconciling():
        with pytest.raises(InstallFailed):
            await world.create(MAIN, REQUIREMENTS)


async def test_first_disks_take_their_turn_among_the_steps(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconciling, "MAX_CONCURRENT_STEPS", 1)
    create_disk, beside, most = world.engine.create_disk, 0, 0

    async def create(*args: object) -> None:
        nonlocal beside, most
        beside += 1
        most = max(most, beside)
        await asyncio.sleep(0.02)
        beside -= 1
        await create_disk(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(world.engine, "create_disk", create)
    async with world.reconciling():
        asked = [await world.ask(MAIN, name=f"app-{number}") for number in range(4)]
        for builder in asked:
            await world.outcome(builder)
    assert (world.called("create_disk"), most) == (4, 1)


@pytest.mark.parametrize("point", ["Review.done", "Review.recorded"])
async def test_a_disk_whose_service_was_killed_is_gone_after_a_stop(world: World, point: str) -> None:
    async with living(world, point) as life:
        builder = await life.world.ask(MAIN, REQUIREMENTS)
        await world.until(lambda: life.is_over)
    assert world.engine.disks
    await world.want(builders.stop, builder)
    world.clock.move(LEASE.total_seconds())
    async with living(world) as life:
        await life.world.until_status(builder, Status.STOPPED)
        await world.until(lambda: not world.engine.disks)
    assert await world.segments(builder) == []


async def test_a_disk_that_cannot_be_made_beside_the_review_fails_the_builder_by_its_own_step(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(*_: object) -> None:
        raise NoCapacity("the store is full")

    monkeypatch.setattr(world.engine, "create_disk", refuse)
    async with world.reconciling():
        builder = await world.ask(MAIN)
        with pytest.raises(NoCapacity, match="the store is full"):
            await world.outcome(builder)
    assert (await world.version(builder)).review_passed is True


async def test_a_version_with_a_build_command_gets_its_files_from_the_build(world: World) -> None:
    async with world.reconciling():
        await world.create(MAIN, build="make")
    assert world.called("put_bundle") == 1
