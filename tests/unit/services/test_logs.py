"""Logs joined over restarts: in order, filtered, and as they are written."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest
from tests.application import ENTRYPOINT, MAIN, REQUIREMENTS, World

from builderd.adapters.fakes.engine import Behaviour
from builderd.domain.builders import Builder
from builderd.domain.errors import NotFound
from builderd.domain.ids import SandboxId
from builderd.domain.logs import LogLine, LogStream
from builderd.services import builders, logs
from builderd.services.logs import VersionedLine


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "FOLLOW_INTERVAL", 0.001)


async def read(world: World, builder: Builder, **filters: object) -> list[str]:
    lines = await logs.read(world.application, world.caller.tenant_id, builder.id, **filters)  # type: ignore[arg-type]
    return [line.line.text for line in lines]


def newest(world: World) -> SandboxId:
    return list(world.engine.sandboxes)[-1]


async def two_runs(world: World) -> Builder:
    """One line from the installer, and three from each of two runs, a second apart from each other."""
    world.engine.behave(ENTRYPOINT, Behaviour())
    builder = await world.create(MAIN, REQUIREMENTS)
    for run in ("first", "second"):
        if run == "second":
            builder = await world.reached(builders.restart, builder)
        for number in range(3):
            world.clock.move(1)
            stream = LogStream.STDERR if number == 1 else LogStream.STDOUT
            world.engine.print(newest(world), f"{run} {number}", stream=stream)
    return builder


ALL = ["Installing", "first 0", "first 1", "first 2", "second 0", "second 1", "second 2"]


async def test_lines_of_all_runs_and_of_the_installer_come_in_order(world: World) -> None:
    async with world.reconciling():
        assert await read(world, await two_runs(world)) == ALL


@pytest.mark.parametrize(("tail", "count"), [(0, 0), (1, 1), (3, 3), (4, 4), (7, 7), (100, 7)])
async def test_the_tail_is_cut_across_runs(world: World, tail: int, count: int) -> None:
    async with world.reconciling():
        assert await read(world, await two_runs(world), tail=tail) == ALL[len(ALL) - count :]


async def test_runs_that_are_too_old_for_the_tail_are_not_read(world: World) -> None:
    async with world.reconciling():
        builder = await two_runs(world)
        world.engine.calls.clear()
        await read(world, builder, tail=2)
        assert world.called("read_log") == 1


async def test_one_stream_is_shown_alone(world: World) -> None:
    async with world.reconciling():
        builder = await two_runs(world)
        assert await read(world, builder, stream=LogStream.STDERR) == ["first 1", "second 1"]
        assert await read(world, builder, stream=LogStream.STDERR, tail=1) == ["second 1"]
        assert await read(world, builder, stream=LogStream.BUILD) == ["Installing"]


async def test_lines_from_before_a_time_are_left_out(world: World) -> None:
    async with world.reconciling():
        builder = await two_runs(world)
        since = world.clock.now() - timedelta(seconds=3)
        assert await read(world, builder, since=since) == ["first 2", "second 0", "second 1", "second 2"]


async def test_lines_of_one_moment_stay_in_the_order_they_were_written(world: World) -> None:
    async with world.reconciling():
        builder = await world.create()
        world.engine.print(newest(world), *(f"line {number}" for number in range(20)))
        assert await read(world, builder, tail=5) == [f"line {number}" for number in range(15, 20)]
        assert await read(world, builder) == [f"line {number}" for number in range(20)]


async def test_lines_tell_their_version(world: World) -> None:
    async with world.reconciling():
        builder = await two_runs(world)
        lines = await logs.read(world.application, world.caller.tenant_id, builder.id)
        assert {line.version for line in lines} == {1}


async def test_nobody_reads_another_tenants_log(world: World) -> None:
    async with world.reconciling():
        builder = await two_runs(world)
        world.caller = await world.tenant("other")
        with pytest.raises(NotFound):
            await read(world, builder)
        assert [line async for line in follow(world, builder)] == []


# As they are written


def follow(world: World, builder: Builder, **filters: object) -> AsyncIterator[VersionedLine]:
    return logs.follow(world.application, world.caller.tenant_id, builder.id, **filters)  # type: ignore[arg-type]


class Reader:
    """Collects what a follower is told."""

    def __init__(self, lines: AsyncIterator[VersionedLine]) -> None:
        self.told: list[str] = []
        self.task = asyncio.create_task(self._read(lines))

    async def _read(self, lines: AsyncIterator[VersionedLine]) -> None:
        async for line in lines:
            self.told.append(line.line.text)


async def test_a_follower_is_told_each_line_once_over_restarts_until_the_builder_is_deleted(world: World) -> None:
    async with world.reconciling():
        builder = await two_runs(world)
        reader = Reader(follow(world, builder, tail=1))
        await world.until(lambda: reader.told == ALL[-1:])
        world.engine.print(newest(world), "more")
        await world.until(lambda: reader.told[-1] == "more")
        await world.reached(builders.restart, builder)
        world.engine.print(newest(world), "after the restart")
        await world.until(lambda: reader.told[-1] == "after the restart")
        await world.reached(builders.delete, builder)
        await reader.task
        assert reader.told == ["second 2", "more", "after the restart"]


async def test_a_follower_may_begin_with_everything_since_a_time(world: World) -> None:
    async with world.reconciling():
        builder = await two_runs(world)
        since = world.clock.now() - timedelta(seconds=1)
        reader = Reader(follow(world, builder, tail=None, since=since))
        await world.until(lambda: reader.told == ALL[-2:])
        reader.task.cancel()


async def test_a_follower_may_follow_one_stream(world: World) -> None:
    async with world.reconciling():
        builder = await two_runs(world)
        reader = Reader(follow(world, builder, tail=None, stream=LogStream.STDERR))
        world.engine.print(newest(world), "not this")
        world.engine.print(newest(world), "this", stream=LogStream.STDERR)
        await world.until(lambda: "this" in reader.told)
        assert reader.told == ["first 1", "second 1", "this"]
        reader.task.cancel()


async def test_an_ended_run_is_not_read_again_and_again(world: World) -> None:
    async with world.reconciling():
        builder = await two_runs(world)
        reader = Reader(follow(world, builder, tail=None))
        await world.until(lambda: reader.told == ALL)
        (first, _) = await world.records(builder)
        # It is read once more after its end was noticed, and then no more.
        read = ("read_log", newest(world))
        await world.until(lambda: [one for one in world.engine.calls if one[0] == "read_log"][-2:] == [read, read])
        world.engine.calls.clear()
        await world.until(lambda: world.called("read_log") > 3)
        assert ("read_log", first.id) not in world.engine.calls
        reader.task.cancel()


# What a look costs


@pytest.mark.parametrize("look", [1, 2, 7, 1_000])
async def test_filtered_lines_are_the_same_however_far_back_one_looks_at_once(
    world: World, monkeypatch: pytest.MonkeyPatch, look: int
) -> None:
    monkeypatch.setattr(logs, "FIRST_LOOK", look)
    async with world.reconciling():
        builder = await world.create()
        streams = [LogStream.STDERR if number % 13 == 5 else LogStream.STDOUT for number in range(100)]
        times = []
        for number, stream in enumerate(streams):
            world.clock.move(1)
            times.append(world.clock.now())
            world.engine.print(newest(world), str(number), stream=stream)
        errors = [str(number) for number, stream in enumerate(streams) if stream is LogStream.STDERR]
        assert await read(world, builder, stream=LogStream.STDERR) == errors
        assert await read(world, builder, stream=LogStream.STDERR, tail=2) == errors[-2:]
        assert await read(world, builder, since=times[60]) == [str(number) for number in range(60, 100)]
        assert await read(world, builder, since=times[60], tail=3) == ["97", "98", "99"]
        assert await read(world, builder, since=times[60], stream=LogStream.STDERR) == ["70", "83", "96"]


async def test_recent_lines_are_read_from_the_end(world: World) -> None:
    async with world.reconciling():
        builder = await world.create()
        world.engine.print(newest(world), *(str(number) for number in range(20_000)))
        asked: list[int | None] = []
        real = world.engine.read_log

        async def counting(sandbox: SandboxId, cursor: str = "", tail: int | None = None) -> object:
            asked.append(tail)
            return await real(sandbox, cursor, tail)

        world.engine.read_log = counting  # type: ignore[assignment,method-assign]
        assert len(await read(world, builder, stream=LogStream.STDOUT)) == 200
        assert asked == [logs.FIRST_LOOK]


async def test_a_follower_reads_each_line_of_an_installer_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    from builderd.adapters.stores.sql.build_logs import BuildLogs

    async with world.reconciling():
        builder = await two_runs(world)
        reader = Reader(follow(world, builder, tail=None))
        await world.until(lambda: reader.told == ALL)

        def never(*_: object) -> None:
            raise AssertionError("the whole log was read again")

        monkeypatch.setattr(BuildLogs, "list", never)
        monkeypatch.setattr(BuildLogs, "last", never)
        line = LogLine(world.clock.now() + timedelta(seconds=1), LogStream.BUILD, "later")
        await world.application.store.write(lambda uow: uow.build_logs.add(builder.id, 1, [line]))
        await world.until(lambda: reader.told == [*ALL, "later"])
        reader.task.cancel()
