"""One worker a builder: what it does when the machine fails, and when somebody else has the builder."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable
from typing import Any, TypeVar

import pytest
from tests.application import ENTRYPOINT, MAIN, REQUIREMENTS, World
from tests.fakes.sandboxes import Behaviour
from tests.unit.reconciler.ledgers import check_ledger

from builderd.builders import service as builders
from builderd.builders.claims import Claims
from builderd.builders.model import Builder, Desired, Status
from builderd.core.errors import RETRY_AFTER, EngineUnavailable, MachineFault, NoCapacity, StoreUnavailable
from builderd.core.loops import no_fault
from builderd.database.unit_of_work import UnitOfWork
from builderd.dependencies.model import BuildOutcome
from builderd.previews.model import Route, RouteState
from builderd.reconciler import reconciler as reconciling
from builderd.reconciler import worker as working
from builderd.reconciler.worker import LEASE, Steps
from builderd.sandboxes.model import EndCause

T = TypeVar("T")
DOWN = EngineUnavailable("The engine does not answer.")


async def pass_time(world: World, task: asyncio.Task[Builder]) -> Builder:
    """Let the retries come due until this is done."""
    while not task.done():
        world.clock.move(0.5)
        await asyncio.sleep(0.002)
    return await task


# Troubles of the machine


@pytest.mark.usefixtures("claims_outlast_fake_time")
@pytest.mark.parametrize(
    "method", ["has_layer", "build_layer", "create_disk", "put_bundle", "start", "listening", "report", "disk"]
)
async def test_a_passing_trouble_is_overcome(world: World, method: str) -> None:
    async with world.reconciling():
        builder = await world.ask(MAIN, REQUIREMENTS)
        world.engine.fail_next(method, DOWN, DOWN)
        up = await pass_time(world, asyncio.create_task(world.outcome(builder)))
    assert up.status is Status.RUNNING
    await check_ledger(world, builder)


async def test_failures_of_a_start_do_not_count_for_the_stop_that_follows(world: World) -> None:
    builder, context = await world.ask(), context_of(world)

    async def passes(number: int) -> int:
        """Return after how many of these passes the callers of a stop were answered."""
        before = world.application.stalled.number
        for _ in range(number):
            await working.Worker(world.application, builder.id, context).run()
            world.clock.move(working.LAST_RETRY)
        return world.application.stalled.number - before

    world.engine.fail_next("start", *[DOWN] * (working.MAX_FAILURES - 1))
    assert await passes(working.MAX_FAILURES - 1) == 0
    await world.want(builders.stop, builder)
    world.engine.fail_next("stop", *[DOWN] * (working.MAX_FAILURES + 1))
    assert await passes(working.MAX_FAILURES - 1) == 0
    assert await passes(2) == 2
    assert await passes(1) == 0
    assert (await world.builder(builder)).status is Status.STOPPED


def context_of(world: World) -> working.WorkerContext:
    limit = asyncio.Semaphore(working.MAX_CONCURRENT_STEPS)
    return working.WorkerContext(Steps(world.application), no_fault, lambda: None, limit)


@pytest.mark.usefixtures("claims_outlast_fake_time")
@pytest.mark.parametrize("method", ["stop", "remove", "delete_disk", "delete_logs"])
async def test_a_passing_trouble_does_not_keep_a_builder_from_being_deleted(world: World, method: str) -> None:
    async with world.reconciling():
        builder = await world.create()
        world.engine.fail_next(method, DOWN, DOWN)
        gone = await pass_time(world, asyncio.create_task(world.reached(builders.delete, builder)))
        assert gone.status is Status.DELETED


@pytest.mark.usefixtures("claims_outlast_fake_time")
async def test_reconciler_waits_for_a_preview_that_is_down(world: World) -> None:
    world.previews.break_down()
    async with world.reconciling():
        up = asyncio.create_task(world.create())
        await asyncio.sleep(0.02)
        await world.previews.start()
        assert (await pass_time(world, up)).status is Status.RUNNING


@pytest.mark.usefixtures("claims_outlast_fake_time")
async def test_a_run_is_given_up_after_four_troubles_and_says_why(world: World) -> None:
    async with world.reconciling():
        builder = await world.ask()
        world.engine.fail_next("start", *[DOWN] * 4)
        with pytest.raises(EngineUnavailable, match="does not answer") as failed:
            await pass_time(world, asyncio.create_task(world.outcome(builder)))
        assert failed.value.data == {"uuid": builder.id, "version": 1}
        await world.until_route(builder, RouteState.FAILED)
    assert world.called("start") == 4
    rests = await world.builder(builder)
    assert (rests.status, rests.desired, rests.failure_code) == (Status.FAILED, Desired.STOPPED, "engine_unavailable")


@pytest.mark.usefixtures("claims_outlast_fake_time")
async def test_a_run_that_a_full_disk_stops_is_given_up_as_a_fault_of_the_machine(world: World) -> None:
    async with world.reconciling():
        builder = await world.ask()
        world.engine.fail_next("start", *[OSError(errno.ENOSPC, "No space left on device")] * 4)
        with pytest.raises(MachineFault, match=r"ENOSPC.*free space") as failed:
            await pass_time(world, asyncio.create_task(world.outcome(builder)))
        assert failed.value.data == {"uuid": builder.id, "version": 1}
        assert failed.value.retry_after == RETRY_AFTER
    assert world.called("start") == 4


@pytest.mark.usefixtures("claims_outlast_fake_time")
async def test_no_run_is_given_up_for_a_database_that_is_away(world: World) -> None:
    away = StoreUnavailable("The database does not answer.")
    async with world.reconciling():
        builder = await world.ask()
        world.engine.fail_next("start", *[away] * 4, DOWN, away, DOWN, away, DOWN)
        up = await pass_time(world, asyncio.create_task(world.outcome(builder)))
    assert up.status is Status.RUNNING


async def test_pauses_between_troubles_grow(world: World) -> None:
    async with world.reconciling():
        builder = await world.create()
        world.engine.fail_next("stop", *[DOWN] * 3)
        world.engine.calls.clear()
        await world.want(builders.stop, builder)
        for tries, pause in enumerate((0.5, 1, 2), start=1):
            await world.until(lambda tries=tries: world.called("stop") == tries)  # type: ignore[misc]
            await asyncio.sleep(0.03)
            world.clock.move(pause - 0.1)
            await asyncio.sleep(0.03)
            assert world.called("stop") == tries
            world.clock.move(0.1)
        await world.until_status(builder, Status.STOPPED)


async def test_missing_capacity_fails_at_once(world: World) -> None:
    world.engine.fail_next("start", NoCapacity("The machine has no memory left for 1 GB."))
    async with world.reconciling():
        with pytest.raises(NoCapacity, match="no memory left"):
            await world.create()
    assert world.called("start") == 1


@pytest.mark.usefixtures("claims_outlast_fake_time")
async def test_an_app_that_was_up_is_not_given_up_for_want_of_room(world: World) -> None:
    async with world.reconciling():
        builder = await world.create()
        world.engine.fail_next("start", *[NoCapacity("no")] * 6)
        world.engine.restart_host()
        await world.until(lambda: world.called("start") > 1)
        up = asyncio.create_task(world.until_route(builder, RouteState.OPEN))
        while not up.done():
            world.clock.move(1)
            await asyncio.sleep(0.002)
        await up
    assert (await world.builder(builder)).status is Status.RUNNING
    assert world.called("start") == 8


@pytest.mark.usefixtures("claims_outlast_fake_time")
async def test_internal_error_is_not_shown(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    async def start(*_: object) -> None:
        raise OSError("/var/lib/builderd/secret/path")

    monkeypatch.setattr(world.engine, "start", start)
    async with world.reconciling():
        with pytest.raises(EngineUnavailable) as failed:
            await pass_time(world, asyncio.create_task(world.create()))
    assert "secret" not in failed.value.message
    assert "log" in failed.value.message


@pytest.mark.usefixtures("claims_outlast_fake_time")
async def test_step_without_progress_is_limited(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    puts = 0

    async def put(_: Route) -> None:
        nonlocal puts
        puts += 1

    monkeypatch.setattr(world.previews, "put", put)
    async with world.reconciling():
        with pytest.raises(EngineUnavailable):
            await pass_time(world, asyncio.create_task(world.create()))
    # and some more, with growing pauses, for the route that says so
    assert puts <= (working.MAX_FAILURES + 2) * working.MAX_REPEATS


# Claims


async def test_claimed_builder_is_skipped_until_the_claim_expires(world: World) -> None:
    builder = await world.ask()
    until = world.clock.now() + LEASE
    await world.application.store.write(lambda uow: uow.builders.claim(builder.id, "another", world.clock.now(), until))
    async with world.reconciling():
        await asyncio.sleep(0.05)
        assert (await world.builder(builder)).status is Status.CREATING
        assert world.engine.known_disks == {}
        world.clock.move(LEASE.total_seconds())
        assert (await world.outcome(builder)).status is Status.RUNNING


async def test_result_under_a_lost_claim_is_not_recorded(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    builder = await world.ask()
    create_disk = world.engine.create_disk

    async def create_disk_slowly(disk: str, size_bytes: int) -> None:
        await create_disk(disk, size_bytes)  # type: ignore[arg-type]
        monkeypatch.setattr(world.engine, "create_disk", create_disk)
        world.clock.move(LEASE.total_seconds() + 1)
        now = world.clock.now()
        taken = await world.application.store.write(
            lambda uow: uow.builders.claim(builder.id, "another", now, now + LEASE)
        )
        assert taken

    monkeypatch.setattr(world.engine, "create_disk", create_disk_slowly)
    async with world.reconciling():
        await world.until(lambda: world.engine.known_disks)
        await asyncio.sleep(0.03)
        assert await world.segments(builder) == []
        # the other one is never heard of again
        world.clock.move(LEASE.total_seconds() + 1)
        assert (await world.outcome(builder)).status is Status.RUNNING
    await check_ledger(world, builder)


async def test_a_long_step_keeps_its_claim(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(working, "RENEW_INTERVAL", 0.001)
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def build_slowly(*_: object) -> BuildOutcome:
        begun.set()
        await go_on.wait()
        return BuildOutcome(1, ("that is enough",), 1)

    monkeypatch.setattr(world.engine, "build_layer", build_slowly)
    async with world.reconciling():
        builder = await world.ask(MAIN, REQUIREMENTS)
        await begun.wait()
        for _ in range(5):
            world.clock.move(LEASE.total_seconds() / 2)
            await asyncio.sleep(0.03)
            now = world.clock.now()
            assert not await world.application.store.write(
                lambda uow, now=now: uow.builders.claim(builder.id, "another", now, now)  # type: ignore[misc]
            )
        go_on.set()
        await world.until_status(builder, Status.FAILED)


async def test_work_is_broken_off_when_the_claim_is_lost(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(working, "RENEW_INTERVAL", 0.001)
    building, broken_off = asyncio.Event(), asyncio.Event()

    async def build_for_ever(*_: object) -> BuildOutcome:
        building.set()
        try:
            await asyncio.sleep(3600)
        finally:
            broken_off.set()
        raise AssertionError

    monkeypatch.setattr(world.engine, "build_layer", build_for_ever)
    async with world.reconciling():
        builder = await world.ask(MAIN, REQUIREMENTS)
        await building.wait()

        def steal(uow: UnitOfWork) -> None:
            now = world.clock.now()
            uow.builders.claim(builder.id, "another", now + 2 * LEASE, now + 10 * LEASE)

        await world.application.store.write(steal)
        await asyncio.wait_for(broken_off.wait(), 10)


async def test_claim_survives_a_short_outage_of_the_store(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(working, "RENEW_INTERVAL", 0.001)
    failures = 3
    renew = Claims.renew

    def renew_or_fail(claims: Claims, *claim: Any) -> bool:
        nonlocal failures
        if world.called("listening") and failures:
            failures -= 1
            raise OSError("the database does not answer")
        return renew(claims, *claim)

    async def sleep(_: float) -> None:
        await asyncio.sleep(0.002)

    monkeypatch.setattr(Claims, "renew", renew_or_fail)
    monkeypatch.setattr(world.clock, "sleep", sleep)
    world.engine.behave(ENTRYPOINT, Behaviour(listens_at=20))
    async with world.reconciling():
        assert (await world.create()).status is Status.RUNNING
    assert failures == 0


async def test_two_control_planes_never_work_on_one_builder_at_once(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each engine call of a builder is bracketed: nobody else's may begin inside it."""
    busy: set[str] = set()

    def alone(method: Callable[..., object]) -> Callable[..., object]:
        async def call(subject: object, *more: object) -> object:
            name = str(getattr(subject, "disk", subject))
            assert name not in busy, "two are at it"
            busy.add(name)
            await asyncio.sleep(0.001)
            try:
                return await method(subject, *more)  # type: ignore[misc]
            finally:
                busy.discard(name)

        return call

    for name in ("create_disk", "put_bundle", "start", "stop", "remove"):
        monkeypatch.setattr(world.engine, name, alone(getattr(world.engine, name)))
    second = world.another()
    async with world.reconciling(), second.reconciling():
        asked = [await (world, second)[number % 2].ask(name=f"app-{number}") for number in range(8)]
        made = await asyncio.gather(*((world, second)[number % 2].outcome(b) for number, b in enumerate(asked)))
        assert {builder.status for builder in made} == {Status.RUNNING}
        assert world.called("start") == len(asked)
        stopped = [await (second, world)[n % 2].reached(builders.stop, b) for n, b in enumerate(made)]
        assert {builder.status for builder in stopped} == {Status.STOPPED}
    for builder in asked:
        await check_ledger(world, builder)


async def test_a_wish_made_at_another_control_plane_overtakes_a_long_step(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(working, "OVERTAKEN_INTERVAL", 0.01)
    building = asyncio.Event()

    async def build_for_ever(*_: object) -> BuildOutcome:
        building.set()
        await asyncio.sleep(3600)
        raise AssertionError

    monkeypatch.setattr(world.engine, "build_layer", build_for_ever)
    async with world.reconciling():
        builder = await world.ask(MAIN, REQUIREMENTS)
        await building.wait()
        assert (await world.another().reached(builders.delete, builder)).status is Status.DELETED


# Nothing is overlooked


async def test_an_exit_while_a_worker_is_at_it_is_not_overlooked(world: World) -> None:
    async with world.reconciling():
        builder = await world.create()
        for _ in range(4):
            (sandbox,) = world.running
            world.application.signals.desired_changed(builder.id)  # a worker begins to look
            world.engine.end(sandbox.spec.id, EndCause.HOST_RESTARTED, None)
            await world.until(lambda ended=sandbox: ended not in world.engine.known.values())  # type: ignore[misc]
            await world.until(lambda: world.running)
            await world.until_route(builder, RouteState.OPEN)
    assert (await world.builder(builder)).status is Status.RUNNING


@pytest.mark.usefixtures("claims_outlast_fake_time")
async def test_short_outage_of_the_store_does_not_end_the_reconciler(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = world.application.store.read
    failures = 3

    async def fail_or_read(work: Callable[[UnitOfWork], T]) -> T:
        nonlocal failures
        if failures:
            failures -= 1
            raise OSError("the database does not answer")
        return await read(work)

    async with world.reconciling():
        await asyncio.sleep(0.03)
        monkeypatch.setattr(world.application.store, "read", fail_or_read)
        await world.until(lambda: not failures)
        assert (await pass_time(world, asyncio.create_task(world.create()))).status is Status.RUNNING


@pytest.mark.usefixtures("claims_outlast_fake_time")
async def test_a_worker_that_cannot_claim_leaves_its_builder_to_the_next(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    take = Claims.claim
    failures = 2

    def fail_or_take(claims: Claims, *claim: Any) -> bool:
        nonlocal failures
        if failures:
            failures -= 1
            raise OSError("the database does not answer")
        return take(claims, *claim)

    monkeypatch.setattr(Claims, "claim", fail_or_take)
    async with world.reconciling():
        assert (await pass_time(world, asyncio.create_task(world.create()))).status is Status.RUNNING
    assert failures == 0


async def test_exits_are_watched_again_after_the_watch_broke(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconciling, "RETRY_INTERVAL", 0.001)
    exits = world.engine.exits
    broken = 0

    def break_first() -> object:
        nonlocal broken
        broken += 1
        if broken < 3:
            raise EngineUnavailable("The shim is gone.")
        return exits()

    monkeypatch.setattr(world.engine, "exits", break_first)
    async with world.reconciling():
        await world.create()
        await world.until(lambda: broken == 3)
        await asyncio.sleep(0.01)
        world.engine.restart_host()
        await world.until(lambda: world.called("start") == 2)


async def test_exit_is_noticed_that_comes_while_the_store_does_not_answer(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reconciling, "RETRY_INTERVAL", 0.001)
    read = world.application.store.read
    is_away, lost = True, 0

    async def fail_or_read(work: Callable[[UnitOfWork], T]) -> T:
        nonlocal lost
        if not is_away:
            return await read(work)
        lost += "_read_ended" in getattr(work, "__qualname__", "")
        raise StoreUnavailable("The database does not answer.")

    async with world.reconciling() as reconciler:
        await world.create()
        await world.until(lambda: not reconciler._workers)
        monkeypatch.setattr(world.application.store, "read", fail_or_read)
        world.engine.restart_host()
        await world.until(lambda: lost)
        is_away = False
        await world.until(lambda: world.called("start") == 2)
