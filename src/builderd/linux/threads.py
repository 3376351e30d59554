"""Threads and tasks that are awaited to their end, also on cancellation."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Callable
from typing import Generic, ParamSpec, TypeVar

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


Subjects = TypeVar("Subjects")

log = logging.getLogger(__name__)


class RepeatedCall(Generic[Subjects]):
    """Calls ``work`` in a thread every ``seconds`` with what ``subjects`` returns in the event loop.

    ``event`` names the call in the log, where only the first of several failures stands; the next call is made all
    the same.
    """

    def __init__(
        self, event: str, seconds: float, subjects: Callable[[], Subjects], work: Callable[[Subjects], None]
    ) -> None:
        self._event = event
        self._seconds = seconds
        self._subjects = subjects
        self._work = work
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Call now and again until ``close``. Needs a running event loop."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    def close(self) -> None:
        """Make no further call; one that runs goes on. Idempotent."""
        if self._task:
            self._task.cancel()

    async def _run(self) -> None:
        failed = False
        while True:
            try:
                await asyncio.to_thread(self._work, self._subjects())
                failed = False
            except Exception:
                if not failed:
                    log.warning(
                        "repeated call failed, retrying seconds=%s event=%s", self._seconds, self._event, exc_info=True
                    )
                failed = True
            await asyncio.sleep(self._seconds)


_CHUNK = 1 << 16


async def read_line(descriptor: int, seconds: float) -> bytes:
    """Return the first line, or the part of it written when the last writer ended; raises ``TimeoutError``.

    The caller closes the descriptor; it is not used here after the return.
    """
    os.set_blocking(descriptor, False)
    loop, readable = asyncio.get_running_loop(), asyncio.Event()
    text = b""
    loop.add_reader(descriptor, readable.set)
    try:
        async with asyncio.timeout(seconds):
            while b"\n" not in text:
                try:
                    chunk = os.read(descriptor, _CHUNK)
                except BlockingIOError:
                    readable.clear()
                    await readable.wait()
                    continue
                if not chunk:
                    break
                text += chunk
    finally:
        loop.remove_reader(descriptor)
    return text.partition(b"\n")[0]
