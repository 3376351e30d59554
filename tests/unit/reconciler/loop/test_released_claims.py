"""Claims that a record releases: nothing is done without one, and nothing is overlooked where the store fails then."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import pytest
from tests.application import World
from tests.unit.reconciler.loop.test_worker import context_of, pass_time

from builderd.domain.builders import Builder, Status
from builderd.domain.errors import NoCapacity, StoreUnavailable
from builderd.domain.ids import BuilderId
from builderd.domain.previews import RouteState
from builderd.domain.sandboxes import EndCause
from builderd.reconciler.core import transitions
from builderd.reconciler.core.claim import LEASE
from builderd.reconciler.core.transitions import Record, Recorded
from builderd.reconciler.loop import worker as working
from builderd.services import builders
from builderd.services.application import Application
from builderd.store import UnitOfWork

T = TypeVar("T")


async def is_free(world: World, builder: Builder) -> bool:
    """Return True, and have the claim, if nobody had it."""
    now = world.clock.now()
    return await world.application.store.write(lambda uow: uow.builders.claim(builder.id, "other", now, now + LEASE))


async def test_the_record_that_settles_a_builder_releases_its_claim(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    released, apply = list[bool](), transitions.apply

    async def noted(application: Application, builder_id: BuilderId, record: Record) -> Recorded:
        recorded = await apply(application, builder_id, record)
        released.append(recorded.released)
        return recorded

    monkeypatch.setattr(transitions, "apply", noted)
    async with world.reconciling() as reconciler:
        builder = await world.create()
        for command in (builders.stop, builders.start, builders.delete, None):
            # The call is answered as soon as the last record is stored, before that is noted.
            await world.until(lambda: not reconciler._workers)
            assert released.pop(), "the last record releases"
            assert not any(released), "no other does"
            released.clear()
            if command:
                await world.reached(command, builder)
    assert await is_free(world, builder)


async def end_with_the_record(
    world: World, monkeypatch: pytest.MonkeyPatch, *, also: Callable[[BuilderId], Awaitable[object]]
) -> Builder:
    """Work on a new builder whose app ends, and nobody tells, in the moment of the record that settles it."""
    builder, apply = await world.ask(), transitions.apply

    async def ends(application: Application, builder_id: BuilderId, record: Record) -> Recorded:
        recorded = await apply(application, builder_id, record)
        if recorded.released and world.running:
            world.engine.end(world.running[0].spec.id, EndCause.EXITED, 1)
            await also(builder_id)
        return recorded

    monkeypatch.setattr(transitions, "apply", ends)
    await working.Worker(world.application, builder.id, context_of(world)).run()
    return builder


async def test_the_look_after_that_record_finds_an_app_that_ended_with_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    builder = await end_with_the_record(world, monkeypatch, also=lambda _: asyncio.sleep(0))
    (sandbox,) = await world.records(builder)
    assert sandbox.end is not None
    assert await world.read(lambda uow: uow.builders.due(world.clock.now() + LEASE, 1)) == [builder.id]
    assert await is_free(world, builder)


async def test_without_the_claim_that_it_released_a_worker_does_nothing_more(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def take(builder_id: BuilderId) -> Awaitable[object]:
        now = world.clock.now()
        return world.application.store.write(lambda uow: uow.builders.claim(builder_id, "third", now, now + LEASE))

    builder = await end_with_the_record(world, monkeypatch, also=take)
    (sandbox,) = await world.records(builder)
    assert sandbox.end is None
    assert not await is_free(world, builder)


class FailingStore:
    """Lets the world's store fail from a record on, until it is ``mended``."""

    def __init__(self, world: World, monkeypatch: pytest.MonkeyPatch, after: Callable[[Recorded], bool]) -> None:
        self.away = self.was_away = False
        store, apply = world.application.store, transitions.apply

        async def recorded(application: Application, builder_id: BuilderId, record: Record) -> Recorded:
            found = await apply(application, builder_id, record)
            self.away = self.was_away = self.was_away or after(found)
            return found

        def failing(call: Callable[[Callable[[UnitOfWork], T]], Awaitable[T]]) -> object:
            async def fail_or_call(work: Callable[[UnitOfWork], T]) -> T:
                if self.away:
                    raise StoreUnavailable("The database does not answer.")
                return await call(work)

            return fail_or_call

        monkeypatch.setattr(transitions, "apply", recorded)
        monkeypatch.setattr(store, "write", failing(store.write))
        monkeypatch.setattr(store, "read", failing(store.read))

    def mended(self) -> None:
        self.away = False


async def test_app_that_crashed_is_due_where_the_store_fails_after_the_record_of_its_end(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with world.reconciling() as reconciler:
        builder = await world.create()
        await world.until(lambda: not reconciler._workers)
    world.engine.end(world.running[0].spec.id, EndCause.EXITED, 1)
    store = FailingStore(world, monkeypatch, after=lambda _: True)
    with pytest.raises(StoreUnavailable):
        await working.Worker(world.application, builder.id, context_of(world)).run()
    store.mended()
    (sandbox,) = await world.records(builder)
    assert sandbox.end is not None
    assert await world.read(lambda uow: uow.builders.due(world.clock.now() + LEASE, 1)) == [builder.id]


@pytest.mark.usefixtures("claims_outlast_fake_time")
async def test_claim_stays_until_an_app_that_crashed_is_up_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    apply, released = transitions.apply, list[tuple[bool, bool]]()

    async def noted(application: Application, builder_id: BuilderId, record: Record) -> Recorded:
        recorded = await apply(application, builder_id, record)
        sandbox = recorded.state.sandbox if recorded.state else None
        released.append((recorded.released, bool(sandbox and sandbox.listening_at)))
        return recorded

    async with world.reconciling() as reconciler:
        builder = await world.create()
        await world.until(lambda: not reconciler._workers)
        monkeypatch.setattr(transitions, "apply", noted)
        world.engine.end(world.running[0].spec.id, EndCause.EXITED, 1)
        await world.until(lambda: not world.running)
        await pass_time(world, asyncio.create_task(until_open(world, builder)))
        await world.until(lambda: not reconciler._workers)
    assert len(released) >= 3, "its end, a new one, its start, its port"
    assert [is_released for is_released, is_up in released if not is_up] == [False] * (len(released) - 1)


async def until_open(world: World, builder: Builder) -> Builder:
    await world.until(lambda: world.running)
    await world.until_route(builder, RouteState.OPEN)
    return builder


async def test_step_left_by_a_worker_without_store_and_claim_is_done_after_a_lease(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.engine.fail_next("start", NoCapacity("no"))
    store = FailingStore(world, monkeypatch, after=lambda recorded: recorded.released)
    async with world.reconciling() as reconciler:
        builder = await world.ask()
        await world.until(lambda: store.was_away and not reconciler._workers)
        store.mended()
        assert (await world.builder(builder)).status is Status.FAILED
        assert await world.read(lambda uow: uow.builders.due(world.clock.now() + LEASE, 1)) == []
        world.clock.move(LEASE.total_seconds())
        await world.until_route(builder, RouteState.FAILED)
