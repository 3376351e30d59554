"""Blocking calls that are repeated in a thread."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Generic, TypeVar

Subjects = TypeVar("Subjects")

log = logging.getLogger(__name__)


class RepeatedCall(Generic[Subjects]):
    """Calls ``work`` in a thread every ``seconds`` with what ``subjects`` returns in the event loop.

    ``event`` names the call in the log; the next call is made all the same.
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
        while True:
            try:
                await asyncio.to_thread(self._work, self._subjects())
            except Exception:
                log.warning(
                    "repeated call failed, retrying seconds=%s event=%s", self._seconds, self._event, exc_info=True
                )
            await asyncio.sleep(self._seconds)
