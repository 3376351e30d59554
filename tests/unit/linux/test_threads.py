"""A caller waits for its work in a thread, also when it is cancelled."""

from __future__ import annotations

import asyncio
import threading

import pytest

from builderd.linux.threads import run_to_completion


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
