"""Waits for outcomes, and the stages that they report."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial

import pytest
from tests.application import ENTRYPOINT, MAIN, REQUIREMENTS, World, look_once
from tests.fakes.sandboxes import Behaviour

from builderd.backups.model import Backup, BackupKind, BackupStatus, Restore, RestoreKind, RestoreStatus
from builderd.builders import outcomes
from builderd.builders import service as builders
from builderd.builders.model import Builder, Desired, Status, StopKind, Visibility
from builderd.core.errors import RETRY_AFTER, EngineUnavailable, NoCapacity, StartFailed
from builderd.core.ids import BackupId, DiskId, RestoreId, new_id
from builderd.database.unit_of_work import UnitOfWork
from builderd.engine.port import Readiness
from builderd.idle import service as wake


async def test_a_failed_stage_is_raised_with_the_builders_uuid(world: World) -> None:
    world.engine.behave(ENTRYPOINT, Behaviour(exits_at=0, exit_code=1))
    async with world.reconciling():
        builder = await world.ask()
        with pytest.raises(StartFailed) as failed:
            await world.outcome(builder)
        assert failed.value.data == {"uuid": builder.id, "version": 1}
        assert failed.value.message == (await world.builder(builder)).status_reason


@pytest.mark.parametrize("error", [NoCapacity("There is no room."), EngineUnavailable("It is gone.")])
async def test_machine_failure_raises_machine_fault(world: World, error: NoCapacity | EngineUnavailable) -> None:
    world.engine.fail_next("start", *[error] * 4)
    async with world.reconciling():
        asking = asyncio.create_task(world.create())
        while not asking.done():
            world.clock.move(1)
            await asyncio.sleep(0.002)
        with pytest.raises(type(error), match=error.message):
            await asking


@pytest.mark.parametrize("wait", ["a start", "a command in a stopped app", "a restore", "a backup"])
async def test_wait_ends_while_the_engine_is_out_of_reach(
    world: World, monkeypatch: pytest.MonkeyPatch, wait: str
) -> None:
    builder = await world.ask(auto_stop_interval=15)
    application = world.application
    if wait == "a command in a stopped app":
        await world.change(builder, desired=Desired.STOPPED, status=Status.STOPPED, stop_kind=StopKind.IDLE)
    backup = Backup(
        *(BackupId(new_id()), builder.tenant_id, builder.id, builder.name, 1),
        *(BackupKind.REQUESTED, BackupStatus.PLANNED, "token acme", "", world.clock.now()),
    )
    restore = Restore(
        *(RestoreId(new_id()), builder.tenant_id, builder.id, backup.id, RestoreKind.SAME),
        *(RestoreStatus.PLANNED, "token acme", "", world.clock.now(), DiskId(new_id())),
    )

    def add(uow: UnitOfWork) -> None:
        uow.backups.add(backup)
        uow.restores.add(restore)

    await application.store.write(add)
    monkeypatch.setattr(outcomes, "MAX_UNREACHABLE_SECONDS", 0.05)
    monkeypatch.setattr(outcomes, "LOOK_INTERVAL", 0.02)
    monkeypatch.setattr(outcomes, "LOOK_INTERVAL", 0.02)
    monkeypatch.setattr(world.engine, "readiness", lambda: Readiness(False, "no quorum", engine_unreachable=True))
    calls: dict[str, Callable[[], Awaitable[object]]] = {
        "a start": lambda: outcomes.wait(application, builder.id, 1),
        "a command in a stopped app": lambda: wake.awake(application, builder.id),
        "a restore": lambda: outcomes.restored(application, restore),
        "a backup": lambda: outcomes.taken(application, backup),
    }
    async with asyncio.timeout(30):
        with pytest.raises(EngineUnavailable, match=r"stored and goes on, but may still fail.*no quorum") as raised:
            await calls[wait]()
    assert (raised.value.data, raised.value.retry_after) == ({"uuid": builder.id}, RETRY_AFTER)


async def test_wait_for_stop_or_delete_of_a_failed_builder_returns(world: World) -> None:
    world.engine.behave(ENTRYPOINT, Behaviour(exits_at=0))
    async with world.reconciling():
        builder = await world.ask()
        with pytest.raises(StartFailed):
            await world.outcome(builder)
        assert (await world.reached(builders.stop, builder)).status is Status.FAILED
        assert (await world.reached(builders.delete, builder)).status is Status.DELETED


async def test_waiter_for_a_start_gets_a_later_stop(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.engine.behave(ENTRYPOINT, Behaviour(listens_at=None))
    look_once(monkeypatch)
    async with world.reconciling():
        waiting = asyncio.create_task(world.create())
        await world.until(lambda: world.running)
        (builder_id,) = await world.read(lambda uow: uow.builders.ids())
        builder = await world.read(lambda uow: uow.builders.get(builder_id))
        assert builder is not None
        await world.want(builders.stop, builder)
        assert (await waiting).status is Status.STOPPED


async def test_waiter_gets_the_deletion(world: World) -> None:
    builder = await world.ask()
    waiting = asyncio.create_task(world.outcome(builder))
    await world.want(builders.delete, builder)
    async with world.reconciling():
        assert (await waiting).desired is Desired.DELETED


async def test_waiter_for_an_old_run_gets_the_new_outcome(world: World) -> None:
    async with world.reconciling():
        builder = await world.create()
    await world.want(builders.restart, builder)
    assert (await outcomes.wait(world.application, builder.id, 1)).generation == 2


async def test_changes_of_another_control_plane_are_noticed_too(world: World) -> None:
    builder = await world.ask()
    waiting = asyncio.create_task(world.outcome(builder))
    async with world.another().reconciling():
        assert (await waiting).status is Status.RUNNING


async def test_stages_are_yielded_until_the_outcome(world: World) -> None:
    builder = await world.ask(MAIN, REQUIREMENTS)
    async with world.reconciling():
        told = [event async for event in outcomes.stages(world.application, builder.id, builder.generation)]
    assert [(event.type, event.details["stage"]) for event in told] == [
        ("stage.finished", "review"),
        ("stage.finished", "install"),
        ("stage.started", "start"),
        ("stage.finished", "start"),
        ("stage.finished", "qa"),
    ]
    assert all(event.details.get("ok", True) for event in told)


async def test_a_start_that_is_called_off_is_no_stage_that_went_well(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.engine.behave(ENTRYPOINT, Behaviour(listens_at=None))
    look_once(monkeypatch)
    async with world.reconciling():
        builder = await world.ask()
        await world.until(lambda: world.running)
        await world.reached(builders.stop, builder)
        finished = [event for event in await world.events(builder) if event.type == "stage.finished"]
        assert [event.details["stage"] for event in finished] == ["review", "install"]


async def test_preview_that_is_not_updated_in_time_is_reported(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    async with world.reconciling():
        builder = await world.create()
    monkeypatch.setattr(outcomes, "MAX_WAIT_SECONDS", 0.05)
    await outcomes.wait_until_reachable(world.application, builder)
    for change in ({"visibility": Visibility.PRIVATE}, {"service_token": "bds_another"}):
        changed = replace(builder, **change)
        await world.application.store.write(partial(_save, changed))
        with pytest.raises(EngineUnavailable, match="does not keep to it yet") as told:
            await outcomes.wait_until_reachable(world.application, changed)
        assert told.value.data == {"uuid": builder.id}


def _save(builder: Builder, uow: UnitOfWork) -> None:
    uow.builders.get(builder.id, lock=True)
    uow.builders.save(builder)


async def test_outcome_recorded_before_the_wait_began_is_answered_at_once(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The change's caller comes to wait some time after its commit; a sandbox may be up by then."""
    wanted = await world.ask()
    async with world.reconciling():
        await world.outcome(wanted)

        async def wait(*_: object) -> None:
            pytest.fail("its outcome is there")

        monkeypatch.setattr(world.application.signals, "wait", wait)
        view = await builders.view_when_settled(world.application, wanted)
    assert view.builder.status is Status.RUNNING
