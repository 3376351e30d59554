"""Usage of builders is sampled, summed and stored in bounded space."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
from tests.application import World, fake_world

from builderd.builders import service as builders
from builderd.builders.model import Builder
from builderd.core.errors import NotFound
from builderd.core.ids import BuilderId, SandboxId
from builderd.metrics.job import Sampling, sample
from builderd.metrics.model import BUCKET, SPAN, UsageBucket, UsageSample, start_of
from builderd.previews.model import PreviewActivity
from builderd.sandboxes.model import SandboxUsage

VISITS = PreviewActivity(10, 0, 0, 1, 0, 0.0, answers_2xx=8, answers_5xx=2)


def sample_of(world: World, builder: BuilderId) -> UsageSample:
    found = world.application.usage.get(builder)
    assert found
    return found


@pytest.fixture
async def world() -> AsyncIterator[World]:
    async with fake_world() as world:
        yield world


def using(world: World, used: SandboxUsage | None) -> None:
    async def usage(_: object) -> SandboxUsage | None:
        return used

    world.engine.usage = usage  # type: ignore[assignment,method-assign]


def usage_of(cpu: float = 0, memory: int = 1_000, received: int = 0) -> SandboxUsage:
    return SandboxUsage(cpu, memory, 500, received, 0, 1)


def losing(world: World, lost: SandboxId) -> None:
    """Have the engine fail at this sandbox."""
    usage = world.engine.usage

    async def failing(sandbox: SandboxId) -> SandboxUsage | None:
        if sandbox == lost:
            raise NotFound("There is no disk one.")
        return await usage(sandbox)

    world.engine.usage = failing  # type: ignore[method-assign]


async def steps(world: World, builder: Builder) -> list[UsageBucket]:
    since = world.clock.now() - 2 * SPAN
    return list(await world.read(lambda uow: uow.metrics.of_builder(builder.id, since)))


async def test_readings_are_added_up_and_written_down_together(world: World) -> None:
    async with world.reconciling():
        builder = await world.create()
        sampling = Sampling(world.application)
        using(world, usage_of(cpu=5))
        world.previews.visit(builder.host, VISITS)
        await sampling.sample()
        for number in (1, 2, 3):
            world.clock.move(10)
            using(world, usage_of(cpu=5 + number, memory=1_000 * number, received=100 * number))
            world.previews.visit(builder.host, replace(VISITS, requests=10 + number, answers_2xx=8 + number))
            await sampling.sample()
        assert await steps(world, builder) == []
        await sampling.flush()
        (step,) = await steps(world, builder)
    usage = step.usage
    assert (usage.seconds, usage.cpu_seconds, usage.network_in_bytes) == (30, 3, 300)
    assert (usage.requests, usage.answers_2xx, usage.answers_5xx) == (3, 3, 0)
    assert (usage.memory_bytes, usage.memory_most_bytes) == (2_000, 3_000)
    assert step.start == start_of(step.start)


async def test_usage_before_a_restart_is_not_counted_twice(world: World) -> None:
    async with world.reconciling():
        builder = await world.create()
        using(world, usage_of(cpu=1_000, received=10**9))
        world.previews.visit(builder.host, VISITS)
        sampling = Sampling(world.application)
        await sampling.sample()
        await sampling.flush()
        (step,) = await steps(world, builder)
    assert (step.usage.cpu_seconds, step.usage.network_in_bytes, step.usage.requests) == (0, 0, 0)


async def test_new_sandbox_is_counted_from_its_start(world: World) -> None:
    async with world.reconciling():
        sampling = Sampling(world.application)
        await sampling.sample()
        builder = await world.create()
        using(world, usage_of(cpu=2))
        world.previews.visit(builder.host, VISITS)
        world.clock.move(4)
        await sampling.sample()
    since_previous = sample_of(world, builder.id).since_previous
    assert (since_previous.cpu_seconds, since_previous.requests) == (2, 10)
    assert since_previous.seconds >= 4


async def test_unreadable_sandbox_does_not_stop_the_sampling_of_others(world: World) -> None:
    async with world.reconciling():
        one, other = await world.create(), await world.create(name="other")
        (first,) = (running.spec.id for running in world.running if running.spec.builder_id == one.id)
        sampling = Sampling(world.application)
        using(world, usage_of(cpu=1))
        await sampling.sample()
        losing(world, first)
        world.clock.move(10)
        await sampling.sample()
        assert [one.watched.builder_id for one in world.application.usage.values()] == [other.id]
        using(world, usage_of(cpu=5))
        world.clock.move(10)
        await sampling.sample()
    since_previous = sample_of(world, one.id).since_previous
    assert (since_previous.cpu_seconds, since_previous.seconds) == (4, 20)


async def test_sandbox_of_another_service_has_no_usage(world: World) -> None:
    async with world.reconciling():
        builder = await world.create()
        sampling = Sampling(world.application)
        await sampling.sample()
        assert world.application.usage.get(builder.id)
        await world.reached(builders.stop, builder)
        await sampling.sample()
        assert world.application.usage == {}


async def test_a_proxy_that_is_down_costs_no_reading(world: World) -> None:
    async with world.reconciling():
        builder = await world.create()
        sampling = Sampling(world.application)
        await sampling.sample()
        world.previews.break_down()
        await sampling.sample()
        assert sample_of(world, builder.id).used.memory_bytes
        await world.previews.start()


async def test_rows_are_bounded_by_time(world: World) -> None:
    async with world.reconciling():
        builder = await world.create()
        sampling = Sampling(world.application)
        for _ in range(40):
            await sampling.sample()
            await sampling.flush()
            world.clock.move(3_600)
        assert len(await steps(world, builder)) <= SPAN // BUCKET // 12 + 2


async def test_a_service_that_ends_writes_down_what_it_read(world: World) -> None:
    async with world.reconciling():
        builder = await world.create()
        task = asyncio.create_task(sample(world.application))
        await world.until(lambda: world.application.usage)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert await steps(world, builder)
