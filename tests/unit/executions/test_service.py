"""A command runs where its builder's sandbox runs."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from tests.application import World
from tests.fakes.processes import Answer

from builderd.builders import outcomes
from builderd.builders import service as builders
from builderd.builders.model import Builder
from builderd.core.errors import InvalidState, NotFound
from builderd.core.ids import TenantId
from builderd.database.unit_of_work import UnitOfWork
from builderd.executions import service as executions
from builderd.executions.service import MemoryQuota
from builderd.sandboxes.model import EndCause, ExecResult


async def run(
    world: World, builder: Builder, command: str = "ls", timeout: float = 60, memory: MemoryQuota | None = None
) -> ExecResult:
    wanted = executions.Command(command, timeout)
    async with executions.run(world.application, world.caller, builder.id, wanted, memory or MemoryQuota()) as ended:
        return ExecResult(ended.exit_code, ended.output.text, ended.output.truncated)


async def test_a_command_is_answered(world: World) -> None:
    world.engine.answer("ls", Answer(3, "main.py\n"))
    async with world.reconciling():
        builder = await world.create()
        assert await run(world, builder) == ExecResult(3, "main.py\n", truncated=False)


async def test_a_long_output_is_cut_and_a_slow_command_killed(world: World) -> None:
    world.engine.answer("yes", Answer(0, "y\n" * 10_000_000, seconds=30))
    async with world.reconciling():
        result = await run(world, await world.create(), "yes", timeout=0.2)
        assert (result.exit_code, result.truncated) == (124, True)
        assert len(result.output) == world.application.limits.exec_output


async def test_output_is_reserved_until_it_was_taken_and_makes_the_next_command_wait(world: World) -> None:
    memory = MemoryQuota(15)
    world.engine.answer("ten", Answer(0, "x" * 10))
    async with world.reconciling():
        builder = await world.create()
        ten = executions.Command("ten")
        async with (
            executions.run(world.application, world.caller, builder.id, ten, memory) as first,
            executions.run(world.application, world.caller, builder.id, ten, memory) as second,
        ):
            assert (first.output.text, second.output.text) == ("x" * 10, "x" * 10)
            assert memory.reserved(world.caller.tenant_id) == 20
            third = asyncio.create_task(run(world, builder, "ten", memory=memory))
            done, _ = await asyncio.wait({third}, timeout=0.1)
            assert not done
        assert (await third).output == "x" * 10
        assert memory.reserved(world.caller.tenant_id) == 0


async def test_a_command_whose_time_ends_while_it_waits_for_the_budget_is_cut(world: World) -> None:
    memory = MemoryQuota(5)
    world.engine.answer("ten", Answer(0, "x" * 10))
    async with world.reconciling():
        builder = await world.create()
        async with executions.run(world.application, world.caller, builder.id, executions.Command("ten"), memory):
            assert await run(world, builder, "ten", timeout=0.1, memory=memory) == ExecResult(124, "", truncated=True)


async def test_running_one_is_activity(world: World) -> None:
    async with world.reconciling():
        builder = await world.create()
        world.clock.move(100)
        await run(world, builder)
        assert (await world.builder(builder)).last_active_at == world.clock.now()


@pytest.mark.parametrize(("freeze_after", "pause", "recorded"), [(60, 0.9, False), (60, 1.1, True), (0.9, 0.4, True)])
async def test_commands_one_after_the_other_record_their_use_no_later_than_keeps_the_builder_awake(
    world: World, freeze_after: float, pause: float, recorded: bool
) -> None:
    world.application = replace(world.application, limits=replace(world.application.limits, freeze_after=freeze_after))
    async with world.reconciling():
        builder = await world.create()
        world.clock.move(100)
        await run(world, builder)
        first = world.clock.now()
        world.clock.move(pause)
        await run(world, builder)
        assert (await world.builder(builder)).last_active_at == (world.clock.now() if recorded else first)


async def test_command_wakes_a_builder_that_fell_asleep_just_after_a_use(world: World) -> None:
    async with world.reconciling():
        builder = await world.create()
        await run(world, builder)
        (sandbox,) = world.engine.known.values()
        now = world.clock.now()

        def sleep(uow: UnitOfWork) -> None:
            uow.builders.save(replace(uow.builders.get(builder.id, lock=True) or builder, asleep_since=now))

        await world.application.store.write(sleep)
        await world.engine.freeze(sandbox.spec.id)
        assert (await run(world, builder)).exit_code == 0
        assert (await world.builder(builder)).asleep_since is None


async def test_nothing_runs_in_a_builder_that_is_stopped_or_being_created(world: World) -> None:
    created = await world.ask()
    with pytest.raises(InvalidState, match="still being created"):
        await run(world, created)
    async with world.reconciling():
        await world.outcome(created)
        await world.reached(builders.stop, created)
        with pytest.raises(InvalidState, match="stopped"):
            await run(world, created)


async def test_command_in_an_ended_app_is_refused(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outcomes, "MAX_WAIT_SECONDS", 0.05)
    async with world.reconciling():
        builder = await world.create()
    (sandbox,) = world.engine.known
    world.engine.end(sandbox, EndCause.EXITED)
    with pytest.raises(InvalidState, match="being started"):
        await run(world, builder)


async def test_command_in_another_tenants_builder_is_not_found(world: World) -> None:
    async with world.reconciling():
        builder = await world.create()
        world.caller = await world.tenant("other")
        with pytest.raises(NotFound):
            await run(world, builder)
        assert world.called("open_process") == 0


ACME, OTHER = TenantId("acme"), TenantId("other")


async def test_bytes_are_counted_until_they_are_given_back() -> None:
    quota = MemoryQuota(10)
    with quota.reserve(ACME) as first, quota.reserve(ACME) as second:
        await first.take(4)
        await second.take(5)
        first.release(1)
        assert quota.reserved(ACME) == 8
        assert quota.reserved(OTHER) == 0
    assert quota.reserved(ACME) == 0


async def test_one_call_may_exceed_the_budget_and_the_next_waits_for_it() -> None:
    quota = MemoryQuota(10)
    with quota.reserve(ACME) as second:
        with quota.reserve(ACME) as first:
            await first.take(8)
            await first.take(100)
            assert not second.try_reserve(1)
            taking = asyncio.create_task(second.take(1))
            done, _ = await asyncio.wait({taking}, timeout=0.05)
            assert not done
        await taking
        assert quota.reserved(ACME) == 1


async def test_calls_that_all_need_more_than_there_is_come_to_an_end_one_after_the_other() -> None:
    quota = MemoryQuota(10)
    most = 0

    async def call() -> None:
        nonlocal most
        with quota.reserve(ACME) as reservation:
            for _ in range(4):
                await reservation.take(2)
                most = max(most, quota.reserved(ACME))
                await asyncio.sleep(0)

    await asyncio.gather(*(call() for _ in range(20)))
    assert 10 < most <= 18


async def test_other_tenants_have_budgets_of_their_own() -> None:
    quota = MemoryQuota(10)
    with quota.reserve(ACME) as first, quota.reserve(OTHER) as other:
        await first.take(20)
        assert other.try_reserve(10)
