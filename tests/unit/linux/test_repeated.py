"""Repeated blocking calls."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Iterator

import pytest

from builderd.linux.repeated import RepeatedCall


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
async def test_failed_call_is_logged_and_the_next_is_made(part: str, caplog: pytest.LogCaptureFixture) -> None:
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
    assert [record.message for record in caplog.records] == [
        "repeated call failed, retrying seconds=0.001 event=test"
    ] * 2


async def test_nothing_is_called_after_the_close() -> None:
    counted = 0

    def count(_: None) -> None:
        nonlocal counted
        counted += 1

    calls = RepeatedCall("test", 0.001, lambda: None, count)
    calls.close()  # also before the start
    calls.start()
    calls.close()
    calls.close()
    for _ in range(20):
        await asyncio.sleep(0.001)
    assert counted == 0
