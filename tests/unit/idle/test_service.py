"""A use wakes a builder, or fails with a reason."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import datetime
from functools import partial

import pytest
from tests.application import PATIENCE, World, fake_world
from tests.fakes.sandboxes import Behaviour

from builderd.builders import outcomes, uses
from builderd.builders import service as builders
from builderd.builders.model import MAX_LEASES, Builder, Cause, Desired, Status, StopKind
from builderd.builders.uses import User
from builderd.core.errors import InvalidState, NotFound, StoreUnavailable
from builderd.core.ids import BuilderId, new_id
from builderd.core.resources import Limit
from builderd.database.unit_of_work import UnitOfWork
from builderd.events.model import SYSTEM
from builderd.executions import service as executions
from builderd.executions.service import Command, MemoryQuota
from builderd.idle import service as wake
from builderd.previews.model import RouteState
from builderd.sandboxes.model import EndCause, Sandbox
from builderd.tokens.limits import TenantLimit


async def asleep(world: World) -> Builder:
    builder = await world.create(auto_stop_interval=15)
    await world.change(builder, asleep_since=world.clock.now())
    world.application.signals.desired_changed(builder.id)
    await world.until(lambda: world.running[0].frozen)
    return builder


async def idled(world: World) -> Builder:
    builder = await world.create(auto_stop_interval=15)
    await world.change(builder, desired=Desired.STOPPED, stop_kind=StopKind.IDLE)
    world.application.signals.desired_changed(builder.id)
    return await world.until_status(builder, Status.STOPPED)


async def test_wake_of_a_running_builder_records_a_use(world: World) -> None:
    async with world.reconciling():
        builder = await world.create()
        world.clock.move(100)
        sandbox = await wake.awake(world.application, builder.id)
        assert [sandbox.id] == list(world.engine.known)
        assert (await world.builder(builder)).last_active_at == world.clock.now()


async def test_a_frozen_one_is_thawed(world: World) -> None:
    async with world.reconciling():
        builder = await asleep(world)
        sandbox = await wake.awake(world.application, builder.id, User("token acme", "woken by a test"))
        assert not world.engine.known[sandbox.id].frozen
        assert (await world.builder(builder)).cause.reason == "woken by a test"


async def test_session_wakes_a_builder_that_fell_asleep() -> None:
    async with fake_world(freeze_after=0.03) as world, world.reconciling():
        builder = await asleep(world)
        (sandbox,) = world.running
        async with wake.keep_awake(world.application, sandbox.spec.id):
            await world.until_route(builder, RouteState.OPEN)
        assert not sandbox.frozen
        event = (await world.events(builder))[-1]
        assert (event.actor, event.reason) == (SYSTEM, "woken since a command or a session in it goes on")


@pytest.mark.parametrize("wish", [builders.stop, builders.delete])
async def test_a_session_brings_back_nothing_that_was_stopped(wish: builders.Command) -> None:
    async with fake_world(freeze_after=0.03) as world, world.reconciling():
        builder = await world.create(auto_stop_interval=15)
        (sandbox,) = world.running
        async with wake.keep_awake(world.application, sandbox.spec.id):
            await world.reached(wish, builder)
            await asyncio.sleep(0.1)
        assert world.running == []


async def test_idled_builder_is_started(world: World) -> None:
    async with world.reconciling():
        builder = await idled(world)
        async with asyncio.timeout(PATIENCE):
            sandbox = await wake.awake(world.application, builder.id)
        assert (sandbox.generation, (await world.builder(builder)).status) == (2, Status.RUNNING)


async def test_command_wakes_with_a_reason(world: World) -> None:
    async with world.reconciling():
        builder = await idled(world)
        async with executions.run(world.application, world.caller, builder.id, Command("ls"), MemoryQuota()):
            pass
        assert (await world.builder(builder)).status_reason == "woken for a command by token acme"


async def test_reason_of_a_stopped_builder_names_the_actor(world: World) -> None:
    async with world.reconciling():
        builder = await world.create()
        await world.reached(builders.stop, builder)
        with pytest.raises(InvalidState, match="stopped by token acme"):
            await wake.awake(world.application, builder.id)


async def waiting(world: World, builder: Builder) -> asyncio.Task[Sandbox]:
    """Wait for the builder as a user does who has seen that it is not up."""
    task = asyncio.create_task(wake.awake(world.application, builder.id))
    await asyncio.sleep(3 * outcomes.LOOK_INTERVAL)
    assert not task.done()
    return task


async def test_restart_by_another_caller_is_awaited(world: World) -> None:
    async with world.reconciling():
        builder = await world.create()
    await world.want(builders.restart, builder)
    task = await waiting(world, builder)
    async with world.reconciling():
        assert (await task).generation == 2


async def test_failed_start_by_another_caller_is_awaited(world: World) -> None:
    async with world.reconciling():
        builder = await world.create()
        await world.reached(builders.stop, builder)
    await world.want(builders.start, builder)
    task = await waiting(world, builder)
    world.engine.behave("python3 main.py", Behaviour(listens_at=None, exits_at=0, exit_code=3))
    async with world.reconciling():
        with pytest.raises(InvalidState, match=r"(?s)is failed .*start it first"):
            await task


async def test_wake_waits_for_a_restart_after_a_crash(world: World) -> None:
    async with world.reconciling():
        builder = await world.create()
        world.engine.end(world.running[0].spec.id, EndCause.EXITED)
        task = await waiting(world, builder)
        world.clock.move(2)
        assert (await task).attempt == 2


async def test_wait_for_a_wake_is_limited(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    async with world.reconciling():
        builder = await world.create()
    await world.want(builders.restart, builder)
    monkeypatch.setattr(outcomes, "MAX_WAIT_SECONDS", 0.05)
    with pytest.raises(InvalidState, match="being started: try again") as told:
        await wake.awake(world.application, builder.id)
    assert told.value.retry_after


async def test_the_first_start_is_not_waited_for(world: World) -> None:
    builder = await world.ask()
    with pytest.raises(InvalidState, match="still being created") as told:
        await wake.awake(world.application, builder.id)
    assert told.value.retry_after is None


async def test_use_cancels_a_pending_auto_stop(world: World) -> None:
    builder = await world.ask(auto_stop_interval=15)
    async with world.reconciling():
        await world.outcome(builder)
    await world.change(builder, desired=Desired.STOPPED, stop_kind=StopKind.IDLE)
    await wake.visited(world.application, builder.host)
    now = await world.builder(builder)
    assert (now.desired, now.generation) == (Desired.RUNNING, 1)
    async with world.reconciling():
        await world.until(lambda: settled_anew(world, builder))
    assert world.called("stop") == 0


async def test_visitors_are_rejected_without_capacity(world: World) -> None:
    async with world.reconciling():
        builder = await idled(world)
    allowed = replace(world.application.tenant_limits, default=TenantLimit(quota=Limit(running_builders=0)))
    await wake.visited(replace(world.application, tenant_limits=allowed), builder.host)
    assert world.previews.rejected_hosts == [builder.host]
    assert (await world.builder(builder)).desired is Desired.STOPPED
    await wake.visited(world.application, builder.host)
    assert (await world.builder(builder)).desired is Desired.RUNNING, "there is room again"
    assert world.previews.rejected_hosts == [builder.host]


async def settled_anew(world: World, builder: Builder) -> bool:
    return (await world.builder(builder)).stop_kind is None


async def test_there_is_nothing_to_wake_where_nothing_is(world: World) -> None:
    await wake.visited(world.application, "nobody-00000000.localhost")
    with pytest.raises(NotFound):
        await wake.awake(world.application, BuilderId(new_id()))
    assert await world.application.store.write(lambda uow: uses.touch(uow, BuilderId(new_id()), now(world))) is None


async def test_a_use_is_never_forgotten_for_an_earlier_one(world: World) -> None:
    async with world.reconciling():
        builder = await world.create()
    first = now(world)
    world.clock.move(10)
    later = now(world)
    for at in (later, first):
        await world.application.store.write(partial(uses.touch, builder_id=builder.id, at=at))
    assert (await world.builder(builder)).last_active_at == later


def now(world: World) -> datetime:
    return world.clock.now()


async def test_visitor_restarts_a_builder_that_is_being_stopped_for_idleness(world: World) -> None:
    """The usual way to a stop for idleness is by way of a freeze."""
    async with world.reconciling():
        builder = await asleep(world)
    await world.change(
        builder, desired=Desired.STOPPED, stop_kind=StopKind.IDLE, cause=Cause(SYSTEM, "idle for 15 minutes")
    )
    await wake.visited(world.application, builder.host)
    async with world.reconciling():
        await world.until_route(builder, RouteState.OPEN)
        await world.until(lambda: settled_anew(world, builder))
    now = await world.builder(builder)
    assert (now.desired, now.cause.reason, now.asleep_since) == (Desired.RUNNING, "woken by a visitor", None)
    assert not world.running[0].frozen


async def test_a_command_does_not_take_back_a_stop_nor_its_reason(world: World) -> None:
    async with world.reconciling():
        builder = await asleep(world)
    await world.want(builders.stop, builder)
    with pytest.raises(InvalidState, match="start it first"):
        await wake.awake(world.application, builder.id, User("token ci", "woken for a command by token ci"))
    async with world.reconciling():
        stopped = await world.until_status(builder, Status.STOPPED)
    assert (stopped.status_reason, stopped.cause.actor) == ("stopped by token acme", "token acme")


async def test_builder_without_auto_stop_is_woken(world: World) -> None:
    """A bot has no visitor who would."""
    async with world.reconciling():
        builder = await asleep(world)
        await world.configure(builder, auto_stop_interval=5)
        assert world.running[0].frozen
        await world.configure(builder, auto_stop_interval=0)
        await world.until(lambda: not world.running[0].frozen)
        reason = (await world.builder(builder)).cause.reason
    assert reason == "woken by token acme: it is to idle no more"


async def test_short_outage_of_the_database_does_not_end_the_loop(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with fake_world(freeze_after=0.03) as world:
        async with world.reconciling():
            builder = await world.create()
        store, failures = world.application.store, 3
        write = store.write

        async def faulty(work):  # type: ignore[no-untyped-def]
            nonlocal failures
            failures -= 1
            if failures >= 0:
                raise StoreUnavailable("The database does not answer.")
            return await write(work)

        monkeypatch.setattr(store, "write", faulty)
        world.clock.move(1000)
        (sandbox,) = world.running
        async with wake.keep_awake(world.application, sandbox.spec.id):
            await world.until(lambda: failures < 0)
            await world.until(lambda: _used_now(world, builder.id))
    assert "use not recorded" in caplog.text


async def _used_now(world: World, builder_id: BuilderId) -> bool:
    def look(uow: UnitOfWork) -> bool:
        builder = uow.builders.get(builder_id)
        return builder is not None and builder.last_active_at == world.clock.now()

    return await world.read(look)


async def take(world: World, builder: Builder, count: int, seconds: int = 1) -> None:
    now, caller = world.clock.now(), world.caller

    def write(uow: UnitOfWork) -> None:
        locked = builders.get(uow, caller.tenant_id, builder.id, lock=True)
        for _ in range(count):
            wake.take_lease(uow, world.application, locked, caller.actor, seconds, "an import", now)

    await world.application.store.write(write)


async def kept(world: World, builder: Builder) -> int:
    return len(await world.read(lambda uow: uow.leases.of_builder(builder.id)))


async def test_expired_leases_are_deleted(world: World) -> None:
    builder = await world.ask(auto_stop_interval=0)
    for _ in range(3):
        await take(world, builder, MAX_LEASES)
        world.clock.move(2)
    assert await kept(world, builder) == MAX_LEASES
    await take(world, builder, 1)
    assert await kept(world, builder) == 1


async def test_expired_lease_counts_as_use(world: World) -> None:
    builder = await world.ask()
    await take(world, builder, 1)
    world.clock.move(2)
    await take(world, builder, 1)
    assert (await world.builder(builder)).last_active_at == world.clock.now()


async def test_refused_lease_changes_nothing(world: World) -> None:
    builder = await world.ask()
    await take(world, builder, 1)
    world.clock.move(2)
    with pytest.raises(InvalidState, match="100 leases"):
        await take(world, builder, MAX_LEASES + 1)
    assert await kept(world, builder) == 1


async def test_a_deleted_builder_has_none(world: World) -> None:
    async with world.reconciling():
        builder = await world.create()
        await take(world, builder, 2, seconds=3600)
        await world.reached(builders.delete, builder)
    assert await kept(world, builder) == 0
