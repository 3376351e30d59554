"""A caller waits for its work in a thread, also when it is cancelled."""

from __future__ import annotations

import asyncio
import threading

import pytest

from builderd.linux.threads import completed, run_to_completion


async def test_event_loop_is_not_blocked_by_the_thread() -> None:
    go_on = threading.Event()
    working = asyncio.create_task(run_to_completion(go_on.wait, timeout=10))
    await asyncio.sleep(0.01)
    go_on.set()
    assert await working is True


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


@pytest.mark.parametrize("at_the_end", [False, True])
async def test_work_beside_a_cancelled_block_is_completed_and_the_cancellation_goes_on(at_the_end: bool) -> None:
    go_on, made, begun = asyncio.Event(), [], asyncio.Event()

    async def work() -> None:
        await go_on.wait()
        made.append("it")

    async def block() -> None:
        async with completed(work()):
            begun.set()
            if not at_the_end:
                await asyncio.sleep(3600)

    task = asyncio.create_task(block())
    await begun.wait()
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.sleep(0.01)
    assert not task.done()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert made == ["it"]


async def test_an_error_of_a_block_is_raised_after_the_work_beside_it() -> None:
    made = []

    async def work() -> None:
        await asyncio.sleep(0.01)
        made.append("it")

    with pytest.raises(ValueError, match="of the block"):
        async with completed(work()):
            raise ValueError("of the block")
    assert made == ["it"]
