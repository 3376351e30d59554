"""A caller waits for its work in a thread, also when it is cancelled."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import threading
from collections.abc import Iterator

import pytest

from builderd.linux.threads import RepeatedCall, read_line, run_to_completion


@pytest.mark.parametrize("times", [1, 2])
async def test_cancelled_caller_waits_for_the_thread(times: int) -> None:
    go_on, made = threading.Event(), []

    def work() -> None:
        go_on.wait(10)
        made.append("it")

    working = asyncio.create_task(run_to_completion(work))
    for _ in range(times):
        await asyncio.sleep(0.01)
        working.cancel()
    await asyncio.sleep(0.01)
    assert not working.done()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await working
    assert made == ["it"]


async def test_calls_are_made_in_a_thread_with_the_subjects_of_the_event_loop() -> None:
    loop_thread, threads = threading.get_ident(), set()
    seen: list[int] = []
    enough = asyncio.Event()
    loop = asyncio.get_running_loop()
    numbers: Iterator[int] = iter(range(100))

    def subjects() -> int:
        assert threading.get_ident() == loop_thread
        return next(numbers)

    def work(number: int) -> None:
        threads.add(threading.get_ident())
        seen.append(number)
        if number == 3:
            loop.call_soon_threadsafe(enough.set)

    calls = RepeatedCall("test", 0.001, subjects, work)
    calls.start()
    await asyncio.wait_for(enough.wait(), 30)
    calls.close()
    assert loop_thread not in threads
    assert seen[:4] == [0, 1, 2, 3]


@pytest.mark.parametrize("part", ["subjects", "work"])
async def test_failed_calls_are_logged_once_and_the_next_is_made(part: str, caplog: pytest.LogCaptureFixture) -> None:
    counted = 0
    enough = asyncio.Event()
    loop = asyncio.get_running_loop()

    def fail_at_first(*_: object) -> None:
        nonlocal counted
        counted += 1
        if counted < 3:
            raise OSError("refused")
        loop.call_soon_threadsafe(enough.set)

    def do_nothing(*_: object) -> None:
        pass

    subjects, work = (fail_at_first, do_nothing) if part == "subjects" else (do_nothing, fail_at_first)
    calls = RepeatedCall("test", 0.001, subjects, work)
    with caplog.at_level(logging.WARNING):
        calls.start()
        await asyncio.wait_for(enough.wait(), 30)
    calls.close()
    assert [record.message for record in caplog.records] == ["repeated call failed, retrying seconds=0.001 event=test"]


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    read, write = os.pipe2(os.O_CLOEXEC)
    yield read, write
    os.close(read)


async def test_the_first_line_is_whole_however_it_comes(pipe: tuple[int, int]) -> None:
    read, write = pipe
    reading = asyncio.create_task(read_line(read, 10))
    for piece in (b"on", b"e\ntw", b"o\n"):
        await asyncio.sleep(0)
        os.write(write, piece)
    assert await reading == b"one"
    os.close(write)


async def test_the_descriptor_is_left_alone_afterwards(pipe: tuple[int, int]) -> None:
    """The descriptor's number may belong to a connection by then, which would go deaf."""
    read, write = pipe
    os.write(write, b"line\nmore\n")
    await read_line(read, 10)
    heard = asyncio.Event()
    asyncio.get_running_loop().add_reader(read, heard.set)
    gc.collect()
    for _ in range(3):
        await asyncio.sleep(0)
    assert asyncio.get_running_loop().remove_reader(read)
    os.close(write)
