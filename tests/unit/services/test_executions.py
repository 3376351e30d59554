"""A command runs where its builder's sandbox runs."""

from __future__ import annotations

import pytest
from tests.application import World

from builderd.adapters.fakes.processes import Answer
from builderd.domain.builders import Builder
from builderd.domain.errors import InvalidState, NotFound
from builderd.domain.sandboxes import EndCause, ExecResult
from builderd.services import builders, executions, outcomes


async def run(world: World, builder: Builder, command: str = "ls", timeout: float = 60) -> ExecResult:
    wanted = executions.Command(command, timeout)
    return await executions.run(world.application, world.caller, builder.id, wanted)


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


async def test_running_one_is_activity(world: World) -> None:
    async with world.reconciling():
        builder = await world.create()
        world.clock.move(100)
        await run(world, builder)
        assert (await world.builder(builder)).last_active_at == world.clock.now()


async def test_nothing_runs_in_a_builder_that_is_stopped_or_being_created(world: World) -> None:
    created = await world.ask()
    with pytest.raises(InvalidState, match="still being created"):
        await run(world, created)
    async with world.reconciling():
        await world.outcome(created)
        await world.reached(builders.stop, created)
        with pytest.raises(InvalidState, match="stopped"):
            await run(world, created)


async def test_an_app_that_ended_unnoticed_is_no_place_for_a_command(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outcomes, "PATIENCE", 0.05)
    async with world.reconciling():
        builder = await world.create()
    (sandbox,) = world.engine.sandboxes
    world.engine.end(sandbox, EndCause.EXITED)
    with pytest.raises(InvalidState, match="being started"):
        await run(world, builder)


async def test_nobody_runs_a_command_in_another_tenants_builder(world: World) -> None:
    async with world.reconciling():
        builder = await world.create()
        world.caller = await world.tenant("other")
        with pytest.raises(NotFound):
            await run(world, builder)
        assert world.called("open_process") == 0
