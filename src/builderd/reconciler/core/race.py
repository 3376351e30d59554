"""Race of two coroutines: the first to end decides, the other is cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")
R = TypeVar("R")


async def race(work: Coroutine[Any, Any, T], rival: Coroutine[Any, Any, R]) -> T | R:
    """Return the result of ``work``, or that of ``rival`` when it ended first.

    The slower one is cancelled, and has ended by the time of the return.
    """
    tasks = asyncio.create_task(work), asyncio.create_task(rival)
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if tasks[0].done():
            return tasks[0].result()
        return tasks[1].result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
