"""A helper's program that was started before there is a task for it: Python and its modules take 100 ms and more."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from builderd.adapters.engines.incus.exec_session import ExecSession
from builderd.domain.errors import BuilderdError

#: Seconds after a task until the next program is started: what the task was done for, such as a start, comes first.
PAUSE_SECONDS = 1.0
#: Seconds within which one that waits, or is just being started, answers; another one is started for the task
#: otherwise.
ANSWER_SECONDS = 5.0
_HERE = b"{}\n"


class SpareProgram:
    """Holder of at most one program that waits for its task. ``start`` starts one and returns its session."""

    def __init__(self, start: Callable[[], Awaitable[ExecSession]]) -> None:
        self._start = start
        self._starting: asyncio.Future[ExecSession] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False

    def prepare(self) -> None:
        """Start one in a moment. Idempotent; once it is closed, as before a last task ends, none is started."""
        if self._timer is None and self._starting is None and not self._closed:
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
            # Nothing of the task is sent before: it is not begun twice.
            async with asyncio.timeout(ANSWER_SECONDS):
                session = await starting
                await session.write(b"\n")
                if await session.read() == _HERE:
                    return session
        except (BuilderdError, TimeoutError):
            pass
        except BaseException:
            await asyncio.shield(_end(starting))
            raise
        await _end(starting)
        return None

    async def close(self) -> None:
        """End one that waits, and start none any more. Idempotent."""
        self._closed = True
        if self._timer:
            self._timer.cancel()
            self._timer = None
        starting, self._starting = self._starting, None
        if starting is not None:
            await _end(starting)


async def _end(starting: asyncio.Future[ExecSession]) -> None:
    """End a program, also one that is being started."""
    starting.cancel()
    await asyncio.wait({starting})
    if not starting.cancelled() and not starting.exception():
        await starting.result().close()
