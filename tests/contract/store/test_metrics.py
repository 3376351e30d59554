"""Metrics as every store keeps them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from functools import partial

from tests.contract.store.samples import NOW, SECOND, TENANT, add, add_builder, make_sandbox

from builderd.core.ids import BuilderId, DiskId
from builderd.database.unit_of_work import Store, UnitOfWork
from builderd.metrics.model import BUCKET, SampleTarget, Usage, UsageBucket, resample, start_of
from builderd.sandboxes.model import EndCause, SandboxEnd

START = start_of(NOW)
USAGE = Usage(60, 1.5, 6e10, 2_000_000_000, 10**12, 3, 4, 5, 6, 7, 8, 9)


async def of_builder(store: Store, builder: BuilderId) -> list[UsageBucket]:
    return list(await store.read(lambda uow: uow.metrics.of_builder(builder, START - BUCKET)))


async def test_samples_are_summed_in_their_step(store: Store) -> None:
    builder = BuilderId("b")
    steps = [
        UsageBucket(builder, START + BUCKET, USAGE),
        UsageBucket(builder, START, USAGE),
        UsageBucket(BuilderId("a"), START, USAGE),
    ]
    await store.write(lambda uow: uow.metrics.add(steps))
    more = UsageBucket(builder, START, Usage(40, 0.5, 1e10, 3_000_000_000, 1, 1, 1, 1, 1, 1, 1, 1))
    await store.write(lambda uow: uow.metrics.add([more]))
    assert await of_builder(store, builder) == [
        UsageBucket(builder, START, Usage(100, 2, 7e10, 3_000_000_000, 10**12, 4, 5, 6, 7, 8, 9, 10)),
        UsageBucket(builder, START + BUCKET, USAGE),
    ]


async def test_times_by_class_of_status_are_summed(store: Store) -> None:
    builder, times = BuilderId("b"), (0,) * 11 + tuple(range(11)) + (0,) * 11
    steps = [
        UsageBucket(builder, START, Usage(requests=1, class_times=times)),
        UsageBucket(builder, START + BUCKET, USAGE),
    ]
    for _ in range(2):
        await store.write(lambda uow: uow.metrics.add(steps))
    first, second = await of_builder(store, builder)
    assert first.usage == Usage(requests=2, class_times=tuple(2 * one for one in times))
    assert second.usage.class_times == ()
    assert await store.write(lambda uow: uow.metrics.expire(START + BUCKET)) == 1
    await store.write(lambda uow: uow.metrics.add([UsageBucket(builder, START, USAGE)]))
    assert (await of_builder(store, builder))[0].usage == USAGE


async def test_old_steps_expire(store: Store) -> None:
    builder = BuilderId("b")
    await store.write(lambda uow: uow.metrics.add([UsageBucket(builder, START + n * BUCKET, USAGE) for n in range(3)]))
    assert await store.write(lambda uow: uow.metrics.expire(START + BUCKET)) == 1
    assert [step.start for step in await of_builder(store, builder)] == [START + BUCKET, START + 2 * BUCKET]


async def test_concurrent_writers_lose_no_samples(store: Store) -> None:
    builders = [BuilderId(f"b{number}") for number in range(20)]

    async def write(order: list[BuilderId]) -> None:
        for _ in range(5):
            await store.write(
                lambda uow: uow.metrics.add([UsageBucket(one, START, Usage(requests=1)) for one in order])
            )

    await asyncio.gather(write(builders), write(builders[::-1]))
    for builder in builders:
        assert [step.usage.requests for step in await of_builder(store, builder)] == [10]


async def test_running_builders_are_watched(store: Store) -> None:
    builder, stopped, starting = await add_builder(store), await add_builder(store), await add_builder(store)
    running = make_sandbox(builder.id, started_at=NOW)
    trial = make_sandbox(builder.id, started_at=NOW, trial=True, attempt=2, disk=DiskId("copy"))
    ended = make_sandbox(stopped.id, started_at=NOW, end=SandboxEnd(EndCause.EXITED, 0, NOW + SECOND))
    await add(store, running, trial, ended, make_sandbox(starting.id))
    assert await store.read(lambda uow: uow.metrics.watched()) == [
        SampleTarget(TENANT.id, "acme", builder.id, builder.name, builder.host, running.id, NOW)
    ]


async def test_loads_of_several_builders_are_the_averages_of_their_steps(store: Store) -> None:
    step, begin = 3 * BUCKET, START - 6 * BUCKET
    steps = [
        UsageBucket(BuilderId(name), START - back * BUCKET, replace(USAGE, cpu_seconds=0.5 * back, seconds=seconds))
        for name, seconds in (("a", 60), ("b", 300), ("c", 60))
        for back in (0, 1, 4, 5, 7)
    ]
    idle = UsageBucket(BuilderId("b"), START - 3 * BUCKET, Usage(requests=5))
    await store.write(lambda uow: uow.metrics.add([*steps, idle]))
    asked = [BuilderId(name) for name in ("a", "b", "none")]
    found = await store.read(lambda uow: uow.metrics.loads(asked, begin, step))
    assert set(found) == {"a", "b"}
    for builder in asked[:2]:
        buckets = await store.read(partial(_of, builder=builder, since=begin))
        expected = {
            number: (usage.cpu, usage.memory_bytes)
            for number, (_, usage) in enumerate(resample(buckets, begin, step, 3))
            if usage.seconds
        }
        assert {number: (load.cpu, int(load.memory_bytes)) for number, load in found[builder].items()} == expected
    assert await store.read(lambda uow: uow.metrics.loads([], begin, step)) == {}


def _of(uow: UnitOfWork, builder: BuilderId, since: datetime) -> Sequence[UsageBucket]:
    return uow.metrics.of_builder(builder, since)
