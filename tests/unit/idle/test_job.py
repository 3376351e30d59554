"""Idle builders are frozen, then auto-stopped, and woken by a use."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

import pytest
from tests.application import ENTRYPOINT, World
from tests.fakes.sandboxes import Behaviour, FakeSandbox

from builderd.builders import service as builders
from builderd.builders.model import Builder, Desired, Lease, LeaseId, Status, StopKind
from builderd.core.errors import NotFound
from builderd.core.ids import SandboxId
from builderd.events.model import SYSTEM
from builderd.idle import service as wake
from builderd.idle.job import Idleness
from builderd.money.model import Billing
from builderd.previews.model import PreviewActivity, RouteState
from builderd.sandboxes.model import EndCause, SandboxUsage

VISITOR = PreviewActivity(1, 0, 0, open_connections=1, failures=0, idle_seconds=0)


async def up(world: World, minutes: int = 15) -> tuple[Builder, Idleness]:
    builder, idleness = await world.create(auto_stop_interval=minutes), Idleness(world.application)
    await idleness.check()
    return builder, idleness


async def pass_time(world: World, idleness: Idleness, seconds: float) -> None:
    world.clock.move(seconds)
    await idleness.check()


def sandbox(world: World, builder: Builder | None = None) -> FakeSandbox:
    (only,) = (one for one in world.running if builder is None or one.spec.builder_id == builder.id)
    return only


def frozen(world: World) -> Callable[[], bool]:
    return lambda: sandbox(world).frozen


async def test_idle_builder_is_frozen_with_status_running(world: World) -> None:
    async with world.reconciling():
        builder, idleness = await up(world)
        await pass_time(world, idleness, 59)
        assert (await world.builder(builder)).asleep_since is None
        await pass_time(world, idleness, 1)
        await world.until(frozen(world))
        await world.until_route(builder, RouteState.ASLEEP)
        assert (await world.builder(builder)).status is Status.RUNNING
        await world.until(lambda: billing(world, builder, Billing.FROZEN))
        event = (await world.events(builder))[-1]
        assert (event.type, event.actor, event.reason) == ("sandbox.frozen", SYSTEM, "idle for 60 seconds")


async def billing(world: World, builder: Builder, state: Billing) -> bool:
    return (await world.segments(builder))[-1].billing is state


async def test_visits_prevent_a_freeze_after_one_second(world: World) -> None:
    """A visit a moment ago is not taken for one that was recorded up to a second before it."""
    limits = replace(world.application.limits, freeze_after=1)
    world.application = replace(world.application, limits=limits)
    async with world.reconciling():
        builder, idleness = await up(world)
        visit = replace(VISITOR, open_connections=0)
        for number in range(20):
            world.previews.visit(builder.host, replace(visit, idle_seconds=0.02 * (number % 3)))
            await pass_time(world, idleness, idleness.interval)
            assert (await world.builder(builder)).asleep_since is None
        world.previews.visit(builder.host, replace(visit, idle_seconds=1))
        await pass_time(world, idleness, 1)
        await world.until(frozen(world))


async def test_cpu_use_prevents_a_freeze(world: World) -> None:
    async with world.reconciling():
        builder, idleness = await up(world)
        for _ in range(10):
            sandbox(world).cpu_seconds += 1
            await pass_time(world, idleness, 20)
        assert (await world.builder(builder)).asleep_since is None
        for _ in range(4):
            sandbox(world).cpu_seconds += 0.1
            await pass_time(world, idleness, 20)
        await world.until(frozen(world))


async def test_unreadable_builder_keeps_no_other_awake(world: World) -> None:
    async with world.reconciling():
        one, idleness = await up(world)
        other = await world.create(name="other", auto_stop_interval=15)
        lost, usage = sandbox(world, one), world.engine.usage

        async def failing(asked: SandboxId) -> SandboxUsage | None:
            if asked == lost.spec.id:
                raise NotFound("There is no disk one.")
            return await usage(asked)

        world.engine.usage = failing  # type: ignore[assignment,method-assign]
        await idleness.check()
        await pass_time(world, idleness, 61)
        await world.until(lambda: sandbox(world, other).frozen)
        assert not lost.frozen


async def test_with_an_interval_of_0_nothing_is_ever_touched(world: World) -> None:
    async with world.reconciling():
        builder, idleness = await up(world, minutes=0)
        await pass_time(world, idleness, 100_000)
        now = await world.builder(builder)
        assert (now.desired, now.asleep_since) == (Desired.RUNNING, None)


async def test_a_visitor_wakes_it_and_is_let_in(world: World) -> None:
    async with world.reconciling():
        builder, idleness = await up(world)
        await pass_time(world, idleness, 61)
        await world.until(lambda: billing(world, builder, Billing.FROZEN))
        world.clock.move(60)
        await wake.visited(world.application, builder.host)
        await world.until_route(builder, RouteState.OPEN)
        assert not sandbox(world).frozen
        assert [one.billing for one in await world.segments(builder)][-3:] == [
            Billing.RUNNING,
            Billing.FROZEN,
            Billing.RUNNING,
        ]
        event = (await world.events(builder))[-1]
        assert (event.type, event.actor, event.reason) == ("sandbox.thawed", "visitor", "woken by a visitor")
        assert (await world.builder(builder)).last_active_at == world.clock.now()


async def test_request_before_the_pause_aborts_the_freeze(world: World) -> None:
    async with world.reconciling():
        builder, idleness = await up(world)
        world.clock.move(61)
        activity = world.previews.activity
        world.previews.activity = nobody  # type: ignore[method-assign]
        await idleness.check()
        world.previews.activity = activity  # type: ignore[method-assign]
        world.previews.visit(builder.host, VISITOR)
        await world.until(lambda: is_awake(world, builder))
        await world.until_route(builder, RouteState.OPEN)
        assert not sandbox(world).frozen


async def nobody() -> dict[str, PreviewActivity]:
    return {}


async def is_awake(world: World, builder: Builder) -> bool:
    now = await world.builder(builder)
    return now.asleep_since is None and now.desired is Desired.RUNNING and now.stop_kind is None


async def test_a_visitor_in_the_last_moment_saves_it_from_the_stop(world: World) -> None:
    async with world.reconciling():
        builder, _ = await up(world)
        await world.until_route(builder, RouteState.OPEN)
        world.previews.visit(builder.host, VISITOR)
        await world.change(builder, desired=Desired.STOPPED, stop_kind=StopKind.IDLE)
        world.application.signals.desired_changed(builder.id)
        await world.until(lambda: is_awake(world, builder))
        assert world.called("stop") == 0


async def test_a_visitor_does_not_save_it_from_a_person(world: World) -> None:
    async with world.reconciling():
        builder, _ = await up(world)
        world.previews.visit(builder.host, VISITOR)
        assert (await world.reached(builders.stop, builder)).status is Status.STOPPED


async def test_after_the_interval_it_is_stopped_and_says_why(world: World) -> None:
    async with world.reconciling():
        builder, idleness = await up(world)
        await pass_time(world, idleness, 15 * 60)
        stopped = await world.until_status(builder, Status.STOPPED)
        assert (stopped.status_reason, stopped.stop_kind) == ("idle for 15 minutes", StopKind.IDLE)
        await world.until_route(builder, RouteState.ASLEEP)
        event = next(event for event in reversed(await world.events(builder)) if event.type == "builder.status")
        assert (event.actor, event.reason) == (SYSTEM, "idle for 15 minutes")


async def test_a_frozen_one_is_stopped_too(world: World) -> None:
    async with world.reconciling():
        builder, idleness = await up(world)
        await pass_time(world, idleness, 61)
        await world.until(frozen(world))
        await pass_time(world, idleness, 15 * 60)
        await world.until_status(builder, Status.STOPPED)
        await world.until_nothing_runs()


async def test_a_visit_starts_what_idled_to_its_stop_and_one_start_is_enough(world: World) -> None:
    async with world.reconciling():
        builder, idleness = await up(world)
        await pass_time(world, idleness, 15 * 60)
        await world.until_status(builder, Status.STOPPED)
        for _ in range(20):
            await wake.visited(world.application, builder.host)
        await world.until_route(builder, RouteState.OPEN)
        again = await world.until_status(builder, Status.RUNNING)
        assert (again.generation, again.status_reason) == (2, "woken by a visitor")
        assert world.called("start") == 2


@pytest.mark.parametrize("kind", [StopKind.PERSON, StopKind.CAP])
async def test_builder_stopped_by_person_or_cap_is_not_woken(world: World, kind: StopKind) -> None:
    async with world.reconciling():
        builder, _ = await up(world)
        await world.reached(builders.stop, builder)
        await world.change(builder, stop_kind=kind)
        await wake.visited(world.application, builder.host)
        await world.application.store.read(lambda uow: None)
        assert (await world.builder(builder)).desired is Desired.STOPPED


async def test_stopping_an_idled_builder_keeps_visitors_from_waking_it(world: World) -> None:
    async with world.reconciling():
        builder, idleness = await up(world)
        await pass_time(world, idleness, 15 * 60)
        await world.until_status(builder, Status.STOPPED)
        stopped = await world.reached(builders.stop, builder)
        assert stopped.status_reason == "stopped by token acme"
        await world.until_route(builder, RouteState.STOPPED)
        await wake.visited(world.application, builder.host)
        assert (await world.builder(builder)).desired is Desired.STOPPED


async def test_failed_wake_rejects_visitors(world: World) -> None:
    async with world.reconciling():
        builder, idleness = await up(world)
        await pass_time(world, idleness, 15 * 60)
        await world.until_status(builder, Status.STOPPED)
        world.engine.behave(ENTRYPOINT, Behaviour(exits_at=0, exit_code=1))
        await wake.visited(world.application, builder.host)
        await world.until_status(builder, Status.FAILED)
        await world.until_route(builder, RouteState.FAILED)


async def test_a_lease_keeps_it_awake_and_a_lease_that_is_over_is_forgotten(world: World) -> None:
    async with world.reconciling():
        builder, idleness = await up(world)
        until = world.clock.now() + timedelta(minutes=20)
        lease = Lease(LeaseId("a"), builder.id, "an import", "token acme", world.clock.now(), until)
        await world.application.store.write(lambda uow: uow.leases.add(lease))
        await pass_time(world, idleness, 19 * 60)
        now = await world.builder(builder)
        assert (now.desired, now.asleep_since) == (Desired.RUNNING, None)
        await pass_time(world, idleness, 15 * 60)
        assert (await world.builder(builder)).last_active_at == until
        assert await world.read(lambda uow: uow.leases.of_builder(builder.id)) == []
        await world.until(frozen(world))


async def test_builder_that_ends_while_frozen_is_restarted_awake(world: World) -> None:
    async with world.reconciling():
        builder, idleness = await up(world)
        await pass_time(world, idleness, 61)
        await world.until(frozen(world))
        world.engine.end(sandbox(world).spec.id, EndCause.HOST_RESTARTED, None)
        await world.until_route(builder, RouteState.OPEN)
        assert (await world.builder(builder)).asleep_since is None


async def test_a_busy_app_is_not_frozen_by_a_clock_that_was_set_forward(world: World) -> None:
    async with world.reconciling():
        builder, idleness = await up(world, minutes=240)
        for _ in range(5):
            sandbox(world).cpu_seconds += 5
            await pass_time(world, idleness, 20)
        world.clock.jump(7200)
        for _ in range(2):
            sandbox(world).cpu_seconds += 5
            await pass_time(world, idleness, 20)
            assert (await world.builder(builder)).asleep_since is None
