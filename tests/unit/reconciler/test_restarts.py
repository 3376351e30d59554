"""Apps that exit are restarted after growing delays, and at last given up."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest
from tests.application import ENTRYPOINT, World
from tests.fakes.sandboxes import Behaviour, FakeSandbox
from tests.unit.reconciler.ledgers import check_ledger

from builderd.builders.model import Builder, Status
from builderd.events import retention
from builderd.events.retention import RetentionJob
from builderd.previews.model import RouteState
from builderd.reconciler import reconciler as reconciling
from builderd.sandboxes.model import EndCause


async def test_an_app_that_exits_is_restarted_after_growing_delays_and_at_last_given_up(world: World) -> None:
    async with world.reconciling():
        # Without a gate: its second look sleeps on the clock of this test, which moves it, as soon as the app is up.
        builder = await world.create(skip_qa=True)
        for exits, delay in enumerate((1, 2, 4, 8), start=1):
            (sandbox,) = world.running
            world.clock.move(5)
            due = world.clock.now() + timedelta(seconds=delay)
            world.engine.end(sandbox.spec.id, EndCause.EXITED, 1)
            await world.until_reason(builder, f"restart {exits} of 5")
            await world.until_route(builder, RouteState.STARTING)
            await world.until(lambda due=due: is_due_first(world, builder, due))  # type: ignore[misc]
            assert not world.running
            world.clock.move(delay)
            await world.until_route(builder, RouteState.OPEN)
            assert (await world.builder(builder)).status is Status.RUNNING
        (sandbox,) = world.running
        world.engine.print(sandbox.spec.id, "the last words")
        world.engine.end(sandbox.spec.id, EndCause.EXITED, 1)
        await world.until_status(builder, Status.FAILED)
        await world.until_route(builder, RouteState.FAILED)
        await world.until_nothing_runs()
    given_up = await world.builder(builder)
    assert "ended 5 times within 10 minutes" in given_up.status_reason
    assert given_up.status_reason.endswith("the last words")
    assert given_up.exit_code == 1
    notes = [event.reason for event in await world.events(builder) if event.type == "builder.restarting"]
    assert notes == [f"exited with code 1, restart {exits} of 5" for exits in (1, 2, 3, 4)]
    await check_ledger(world, builder)


async def is_due(world: World, builder: Builder, at: datetime) -> bool:
    return builder.id in await world.read(lambda uow: uow.builders.due(at, 10))


async def is_due_first(world: World, builder: Builder, at: datetime) -> bool:
    """Return whether it is due then and not before; until its end was worked on, it is due at once."""
    return await is_due(world, builder, at) and not await is_due(world, builder, at - timedelta(milliseconds=1))


async def end_and_come_back(world: World, builder: Builder, cause: EndCause, code: int) -> None:
    """So long after its last end that this is one of two that count."""
    (sandbox,) = world.running
    world.clock.move(300)
    world.engine.end(sandbox.spec.id, cause, code)
    await world.until_nothing_runs()
    world.clock.move(2)  # the delay after the second end
    await world.until_route(builder, RouteState.OPEN)


async def test_the_ends_of_long_ago_are_forgotten(world: World) -> None:
    async with world.reconciling():
        builder = await world.create()
        for _ in range(8):
            await end_and_come_back(world, builder, EndCause.OUT_OF_MEMORY, 137)
        reason = (await world.builder(builder)).status_reason
    assert reason == "out of memory (limit 1 GB), restart 2 of 5"


async def test_an_app_that_ends_now_and_then_for_months_leaves_few_records_and_is_started_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "OF_A_RUN", 3)
    async with world.reconciling():
        builder = await world.create()
        for _ in range(8):
            await end_and_come_back(world, builder, EndCause.EXITED, 1)
            await RetentionJob(world.application).clean_up()
    kept = await world.application.store.read(lambda uow: uow.sandboxes.list(builder.id))
    assert [one.attempt for one in kept] == [7, 8, 9]


async def test_an_app_that_does_not_listen_any_more_after_an_exit_is_given_up(world: World) -> None:
    world.engine.behave(ENTRYPOINT, Behaviour(), Behaviour(listens_at=None))
    async with world.reconciling():
        builder = await world.create()
        (sandbox,) = world.engine.known
        world.engine.end(sandbox, EndCause.EXITED, 1)
        await world.until_nothing_runs()
        world.clock.move(1)
        await world.until_status(builder, Status.FAILED)
        assert "did not listen" in (await world.builder(builder)).status_reason


async def test_after_a_restart_of_the_machine_apps_come_up_again(world: World) -> None:
    async with world.reconciling():
        builder = await world.create()
        old = world.running[0].ip
        world.engine.restart_host()
        await world.until(lambda: world.running)
        route = await world.until_route(builder, RouteState.OPEN)
        assert route.destination is not None
        assert route.destination.ip != old
    assert (await world.builder(builder)).status is Status.RUNNING
    notes = [event.reason for event in await world.events(builder) if event.type == "builder.restarting"]
    assert notes == ["host restarted"]
    await check_ledger(world, builder)


@pytest.mark.parametrize(
    ("cause", "code", "note"),
    [
        (EndCause.MONITOR_LOST, None, "its log monitor (conmon) was killed; restarted"),
        (
            EndCause.HOST_OUT_OF_MEMORY,
            137,
            "killed: the machine was out of memory, the app within its limit; restarted",
        ),
    ],
)
async def test_fault_of_the_machine_restarts_the_app_without_counting_a_crash(
    world: World, cause: EndCause, code: int | None, note: str
) -> None:
    async with world.reconciling():
        builder = await world.create()
        for _ in range(4):
            await end_and_come_back(world, builder, EndCause.EXITED, 1)
        (sandbox,) = world.running
        world.engine.end(sandbox.spec.id, cause, code)
        await world.until_reason(builder, note)
        await world.until_route(builder, RouteState.OPEN)
    assert (await world.builder(builder)).status is Status.RUNNING
    assert note in [one.reason for one in await world.events(builder) if one.type == "builder.restarting"]
    ended = [one for one in await world.events(builder) if one.type == "sandbox.ended"][-1]
    assert (ended.details["cause"], ended.details["exit_code"]) == (cause.value, code)
    await check_ledger(world, builder)


async def test_monitors_that_are_killed_again_and_again_delay_the_restart_and_never_fail_the_app(world: World) -> None:
    async with world.reconciling():
        builder = await world.create(skip_qa=True)  # as above
        for delay in (0, 1, 2, 4, 8, 16, 32, 60, 60):
            (killed,) = world.running
            due = world.clock.now() + timedelta(seconds=delay)
            world.engine.kill_monitor(killed.spec.id)
            if delay:
                await world.until_nothing_runs()
                await world.until(lambda due=due: is_due_first(world, builder, due))  # type: ignore[misc]
                assert not world.running
                world.clock.move(delay)
            await until_replaced(world, killed)
            await world.until_route(builder, RouteState.OPEN)
        assert (await world.builder(builder)).status is Status.RUNNING


async def until_replaced(world: World, ended: FakeSandbox) -> None:
    await world.until(lambda: world.running and ended not in world.running)


async def test_an_app_whose_monitor_was_killed_while_no_service_ran_is_started_again(world: World) -> None:
    async with world.reconciling():
        builder = await world.create()
    (sandbox,) = world.running
    world.engine.kill_monitor(sandbox.spec.id, seen=False)
    async with world.reconciling():
        await world.until_reason(builder, "conmon")
        await world.until_route(builder, RouteState.OPEN)


async def test_an_app_that_vanished_is_started_again(world: World) -> None:
    async with world.reconciling():
        builder = await world.create()
        (sandbox,) = world.engine.known
        world.engine.lose(sandbox)
        world.application.signals.desired_changed(builder.id)
        await world.until_reason(builder, "exit code unknown")
        world.clock.move(1)
        await world.until_route(builder, RouteState.OPEN)
    assert len(world.running) == 1
    await check_ledger(world, builder)


async def test_missed_change_is_found_by_the_sweep(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconciling, "SWEEP_INTERVAL", 0.01)
    async with world.reconciling():
        builder = await world.create()
        (sandbox,) = world.engine.known
        await world.previews.remove(builder.host)
        await world.until_route(builder, RouteState.OPEN)
        world.engine.lose(sandbox)
        await world.until_reason(builder, "exit code unknown")
