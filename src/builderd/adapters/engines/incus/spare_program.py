"""A helper's program that was started before there is a task for it: Python and its modules take 100 ms and more."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from builderd.adapters.engines.incus.exec_session import ExecSession
from builderd.domain.errors import BuilderdError

#: Seconds after a task until the next program is started: what the task was done for, such as a start, comes first.
PAUSE_SECONDS = 1.0
#: Seconds within which one that waits answers; another one is started for the task otherwise.
ANSWER_SECONDS = 5.0
_HERE = b"{}\n"


class SpareProgram:
    """Holder of at most one program that waits for its task. ``start`` starts one and returns its session."""

    def __init__(self, start: Callable[[], Awaitable[ExecSession]]) -> None:
        self._start = start
        self._starting: asyncio.Future[ExecSession] | None = None
        self._timer: asyncio.TimerHandle | None = None

    def prepare(self) -> None:
        """Start one in a moment. Idempotent."""
        if self._timer is None and self._starting is None:
            self._timer = asyncio.get_running_loop().call_later(PAUSE_SECONDS, self._begin)

    def _begin(self) -> None:
        self._timer = None
        self._starting = asyncio.ensure_future(self._start())
        # One that cannot be started, as on a member that is away, is not missed before the next task.
        self._starting.add_done_callback(lambda done: done.cancelled() or done.exception())

    async def take(self) -> ExecSession | None:
        """Return the session of a program that waits; None where there is none, or it does not answer."""
        starting, self._starting = self._starting, None
        if starting is None:
            return None
        try:
            session = await starting
        except BuilderdError:
            return None
        try:
            # Nothing of the task is sent before: it is not begun twice.
            async with asyncio.timeout(ANSWER_SECONDS):
                await session.write(b"\n")
                if await session.read() == _HERE:
                    return session
        except TimeoutError:
            pass
        except BaseException:
            await asyncio.shield(session.close())
            raise
        await session.close()
        return None

    async def close(self) -> None:
        """End one that waits. Idempotent."""
        if self._timer:
            self._timer.cancel()
            self._timer = None
        starting, self._starting = self._starting, None
        if starting is None:
            return
        starting.cancel()
        await asyncio.wait({starting})
        if not starting.cancelled() and not starting.exception():
            await starting.result().close()
