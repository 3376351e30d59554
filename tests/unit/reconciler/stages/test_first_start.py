"""The first disk is made beside the review, and is recorded or gone whatever comes in between."""

from __future__ import annotations

import pytest
from tests.application import MAIN, REQUIREMENTS, World
from tests.unit.reconciler.ledgers import check_ledger
from tests.unit.reconciler.mortal import living

from builderd.domain.builders import Status
from builderd.domain.errors import NoCapacity
from builderd.domain.prices import Billing
from builderd.reconciler.core.claim import LEASE
from builderd.services import builders


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
