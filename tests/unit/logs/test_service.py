"""Logs joined over restarts: in order, filtered, and as they are written."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from datetime import timedelta
from typing import Any

import pytest
from tests.application import ENTRYPOINT, MAIN, REQUIREMENTS, World
from tests.fakes.sandboxes import Behaviour

from builderd.builders import service as builders
from builderd.builders.model import Builder
from builderd.core.errors import EngineUnavailable, NotFound
from builderd.core.ids import SandboxId
from builderd.logs import service as logs
from builderd.logs.service import FollowedLine, LogFilter
from builderd.sandboxes.model import LogLine, LogStream


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "FOLLOW_INTERVAL", 0.001)


async def read(world: World, builder: Builder, **filters: object) -> list[str]:
    wanted = LogFilter(**{"tail": 200, **filters})  # type: ignore[arg-type]
    lines = await logs.read(world.application, world.caller.tenant_id, builder.id, wanted)
    return [line.line.text async for line in lines]


def newest(world: World) -> SandboxId:
    return list(world.engine.known)[-1]


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


async def test_one_stream_is_shown_alone(world: World) -> None:
    async with world.reconciling():
        builder = await two_runs(world)
        assert await read(world, builder, stream=LogStream.STDERR) == ["first 1", "second 1"]
        assert await read(world, builder, stream=LogStream.STDERR, tail=1) == ["second 1"]
        assert await read(world, builder, stream=LogStream.BUILD) == ["Installing"]


async def test_lines_from_before_a_time_are_left_out(world: World) -> None:
    async with world.reconciling():
        builder = await two_runs(world)
        # Not counted back from now: a gate that still watches the first run moves the clock during the restart.
        (first, _) = await world.records(builder)
        (_, printed) = world.engine.known_logs[first.id]
        assert await read(world, builder, since=printed[-1].time) == ["first 2", "second 0", "second 1", "second 2"]


async def test_lines_of_one_moment_stay_in_the_order_they_were_written(world: World) -> None:
    async with world.reconciling():
        builder = await world.create()
        world.engine.print(newest(world), *(f"line {number}" for number in range(20)))
        assert await read(world, builder, tail=5) == [f"line {number}" for number in range(15, 20)]
        assert await read(world, builder) == [f"line {number}" for number in range(20)]


async def test_log_of_another_tenant_is_not_found(world: World) -> None:
    async with world.reconciling():
        builder = await two_runs(world)
        world.caller = await world.tenant("other")
        with pytest.raises(NotFound):
            await read(world, builder)
        assert [line async for line in follow(world, builder)] == []


# As they are written


def follow(world: World, builder: Builder, **filters: object) -> AsyncIterator[FollowedLine]:
    wanted = LogFilter(**{"tail": 0, **filters})  # type: ignore[arg-type]
    return logs.follow(world.application, world.caller.tenant_id, builder.id, wanted)


class Reader:
    """Collector of the lines that a follower gets."""

    def __init__(self, lines: AsyncIterator[FollowedLine]) -> None:
        self.told: list[str] = []
        self.task = asyncio.create_task(self._read(lines))

    async def _read(self, lines: AsyncIterator[FollowedLine]) -> None:
        async for line in lines:
            self.told.append(line.line.text)


async def test_follower_gets_each_line_once_until_the_deletion(world: World) -> None:
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


async def test_a_follower_goes_on_once_the_engine_is_open(world: World) -> None:
    async with world.reconciling():
        builder = await two_runs(world)
        away = EngineUnavailable("The engine is not ready: opening the store.")
        world.engine.fail_next("search_log", away)
        world.engine.fail_next("read_log", away, away)
        reader = Reader(follow(world, builder, tail=1))
        await world.until(lambda: reader.task.done() or reader.told == ALL[-1:])
        assert reader.told == ALL[-1:]
        world.engine.fail_next("read_log", away)
        world.engine.print(newest(world), "more")
        await world.until(lambda: reader.task.done() or reader.told == [ALL[-1], "more"])
        assert reader.told == [ALL[-1], "more"]
        reader.task.cancel()


async def test_a_follower_may_begin_with_everything_since_a_time(world: World) -> None:
    async with world.reconciling():
        builder = await two_runs(world)
        since = world.clock.now() - timedelta(seconds=1)
        reader = Reader(follow(world, builder, tail=None, since=since))
        await world.until(lambda: reader.told == ALL[-2:])
        reader.task.cancel()


# What a look costs


@pytest.mark.parametrize("look", [1, 2, 7, 1_000])
async def test_filtered_lines_are_the_same_however_far_back_one_looks_at_once(
    world: World, monkeypatch: pytest.MonkeyPatch, look: int
) -> None:
    monkeypatch.setattr(logs, "LOOK_BACK", look)
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


class Taken:
    """Record of the lines taken from the engine at a time, and of their generations."""

    def __init__(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        self.pages: list[int] = []
        self._real = world.engine.read_log
        monkeypatch.setattr(world.engine, "read_log", self._read)

    async def _read(self, sandbox: SandboxId, cursor: str = "", **options: Any) -> Sequence[Any]:
        page = await self._real(sandbox, cursor, **options)
        self.pages.append(len(page[0]))
        return page


# In pages


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch) -> int:
    """Set the number of lines that are read at once."""
    monkeypatch.setattr(logs, "PAGE", 5, raising=False)
    return 5


async def long_runs(world: World, count: int = 3) -> tuple[Builder, list[str]]:
    """Runs of more lines than a page has, two in each moment; and what they wrote."""
    builder, written = await world.create(), []
    for run in range(count):
        if run:
            builder = await world.reached(builders.restart, builder)
        for number in range(0, 12, 2):
            world.clock.move(1)
            lines = [f"{run}.{number}", f"{run}.{number + 1}"]
            world.engine.print(newest(world), *lines)
            written += lines
    return builder, written


async def test_a_follower_of_the_last_lines_reads_no_run_before_them(world: World) -> None:
    async with world.reconciling():
        builder = await two_runs(world)
        (first, _) = await world.records(builder)
        world.engine.calls.clear()
        reader = Reader(follow(world, builder, tail=1))
        await world.until(lambda: reader.told == ALL[-1:])
        await world.until(lambda: world.called("read_log") > 5)
        assert not {("read_log", first.id), ("search_log", first.id)} & set(world.engine.calls)
        reader.task.cancel()


@pytest.mark.parametrize("tail", [None, 36, 30, 13])
async def test_a_follower_takes_a_page_when_the_one_before_was_taken(
    world: World, monkeypatch: pytest.MonkeyPatch, page: int, tail: int | None
) -> None:
    monkeypatch.setattr(logs, "LOOK_BACK", 0, raising=False)
    async with world.reconciling():
        builder, written = await long_runs(world)
        wanted = written if tail is None else written[-tail:]
        taken, lines = Taken(world, monkeypatch), follow(world, builder, tail=tail)
        told = [(await anext(lines)).line.text]
        # To find where the last lines begin some were taken before, and let go of.
        before = sum(taken.pages[:-1])
        while len(told) < len(wanted):
            assert sum(taken.pages) - before - len(told) < page
            told.append((await anext(lines)).line.text)
        assert told == wanted
        assert max(taken.pages) <= page
        world.engine.print(newest(world), "more")
        assert (await anext(lines)).line.text == "more"


@pytest.mark.parametrize("tail", [100, 36, 30, 13])
async def test_a_reader_takes_a_page_when_the_one_before_was_taken(
    world: World, monkeypatch: pytest.MonkeyPatch, page: int, tail: int
) -> None:
    async with world.reconciling():
        builder, written = await long_runs(world)
        taken = Taken(world, monkeypatch)
        lines = await logs.read(world.application, world.caller.tenant_id, builder.id, LogFilter(tail))
        before, told = sum(taken.pages), []
        async for line in lines:
            told.append(line.line.text)
            assert sum(taken.pages) - before - len(told) < page
        assert told == written[-tail:]
        assert max(taken.pages) <= page


async def test_reader_gets_lines_written_before_the_call(world: World, page: int) -> None:
    """An app that writes faster than its log is read neither keeps it for ever nor adds to what was asked for."""
    async with world.reconciling():
        builder, written = await long_runs(world)
        told = []
        async for line in await logs.read(world.application, world.caller.tenant_id, builder.id, LogFilter(20)):
            told.append(line.line.text)
            world.clock.move(1)
            world.engine.print(newest(world), *["later"] * 10)
        assert told == written[-20:]


async def test_follower_resumes_after_any_line(world: World, page: int) -> None:
    async with world.reconciling():
        builder, written = await long_runs(world, 2)
        places = [(line.line.time, line.nth) for line in await first(follow(world, builder, tail=None), len(written))]
        assert len(set(places)) == len(written)
        for number, (since, nth) in enumerate(places):
            again = await first(follow(world, builder, tail=None, since=since), len(written) - number + nth - 1)
            assert [line.line.text for line in again[nth - 1 :]] == written[number:]
        for tail in (1, 2, 7, 20):
            last = await first(follow(world, builder, tail=tail), tail)
            assert [(line.line.time, line.nth) for line in last] == places[-tail:]


async def first(lines: AsyncIterator[FollowedLine], count: int) -> list[FollowedLine]:
    return [await anext(lines) for _ in range(count)]


async def test_concurrent_runs_are_merged_by_time(world: World, page: int) -> None:
    async with world.reconciling():
        builder, _ = await long_runs(world, 2)
        begin = world.clock.now()
        for parity, (_, lines) in enumerate(world.engine.known_logs.values()):
            numbers = range(parity, 40, 2)
            lines[:] = [LogLine(begin + timedelta(seconds=n), LogStream.STDOUT, str(n)) for n in numbers]
        for tail, count in ((None, 40), (40, 40), (23, 23)):
            told = await first(follow(world, builder, tail=tail), count)
            assert [line.line.text for line in told] == [str(number) for number in range(40 - count, 40)]


@pytest.mark.parametrize("stream", [None, *LogStream])
@pytest.mark.parametrize("seconds", [None, 0, 2, 4])
@pytest.mark.parametrize(
    "tail", [pytest.param(1, marks=pytest.mark.slow), 4, pytest.param(100, marks=pytest.mark.slow)]
)
async def test_a_follower_begins_with_what_is_read(
    world: World, monkeypatch: pytest.MonkeyPatch, tail: int, seconds: int | None, stream: LogStream | None
) -> None:
    monkeypatch.setattr(logs, "PAGE", 2)
    monkeypatch.setattr(logs, "LOOK_BACK", 1)
    async with world.reconciling():
        builder = await two_runs(world)
        since = None if seconds is None else world.clock.now() - timedelta(seconds=seconds)
        filters = {"tail": tail, "since": since, "stream": stream}
        expected = await read(world, builder, **filters)
        reader = Reader(follow(world, builder, **filters))
        await world.until(lambda: len(reader.told) >= len(expected))
        for kind in (LogStream.STDOUT, LogStream.STDERR):
            world.engine.print(newest(world), f"more {kind}", stream=kind)
        more = [f"more {kind}" for kind in (LogStream.STDOUT, LogStream.STDERR) if stream in (None, kind)]
        await world.until(lambda: reader.told == expected + more)
        reader.task.cancel()


async def test_a_follower_that_is_behind_ends_with_its_builder(world: World, page: int) -> None:
    async with world.reconciling():
        builder, written = await long_runs(world)
        lines = follow(world, builder, tail=None)
        told = [(await anext(lines)).line.text]
        await world.reached(builders.delete, builder)
        async with asyncio.timeout(30):
            told += [line.line.text async for line in lines]
        assert told == written[: len(told)]
