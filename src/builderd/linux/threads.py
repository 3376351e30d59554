"""Threads and tasks that are awaited to their end, also on cancellation."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


async def run_to_completion(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run in a thread; return only when it is done, also when cancelled: it may open or create things."""
    working = asyncio.ensure_future(asyncio.to_thread(work, *args, **kwargs))
    try:
        return await asyncio.shield(working)
    finally:
        while not working.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait({working})


@contextlib.asynccontextmanager
async def completed(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Run the work beside the block; return only when it is done, also when the block fails or is cancelled."""
    working = asyncio.ensure_future(work)
    try:
        yield
        await asyncio.shield(working)
    finally:
        while not working.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait({working})
