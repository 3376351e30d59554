"""Two things at once, of which the first to end decides."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


async def race(work: Coroutine[Any, Any, T], rival: Coroutine[Any, Any, None]) -> T | None:
    """What the work comes to, or None when the rival ended before it. The other is cancelled, and has ended too."""
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
