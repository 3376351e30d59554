"""Last uses and calls of API tokens and sessions, recorded without delaying requests."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from datetime import datetime
from functools import partial

from builderd.domain.errors import StoreUnavailable
from builderd.domain.ids import TokenId
from builderd.domain.tokens import NO_CALLS, CallHours, Session
from builderd.services import sessions
from builderd.services.application import Application

#: Seconds for which a request waits for the record of its token's or session's use.
WAIT_SECONDS = 0.2
#: Seconds after a failed record in which none of the same token or session is tried.
RETRY_SECONDS = 10.0

log = logging.getLogger(__name__)


class LastUses:
    """Records in progress, at most one for each token and session. A later request repeats one that failed."""

    def __init__(self, application: Application, calls: TokenCalls) -> None:
        self._application = application
        self._calls = calls
        #: By the id of the token or session; one that failed stays for ``RETRY_SECONDS``.
        self._recording: dict[str, asyncio.Task[None]] = {}

    async def record(self, token: TokenId, now: datetime) -> None:
        """Record a token's use, with its calls since the one before; return after ``WAIT_SECONDS`` at most."""
        await self._start(token, partial(self._record_token, token, now))

    async def record_session(self, session: Session, now: datetime) -> None:
        """Record a session's use, and its token's; return after ``WAIT_SECONDS`` at most."""
        await self._start(session.id, partial(self._record_session, session, now))

    async def _start(self, key: str, write: Callable[[], Awaitable[None]]) -> None:
        if key in self._recording:
            return
        task = self._recording[key] = asyncio.create_task(self._record(key, write))
        await asyncio.wait({task}, timeout=WAIT_SECONDS)

    async def _record(self, key: str, write: Callable[[], Awaitable[None]]) -> None:
        try:
            await write()
        except Exception as error:
            # The store logs that it is unavailable, twice a minute at most.
            is_known = isinstance(error, StoreUnavailable)
            said = "last use not recorded, retrying in %g s id=%s"
            log.log(logging.DEBUG if is_known else logging.ERROR, said, RETRY_SECONDS, key, exc_info=not is_known)
            asyncio.get_running_loop().call_later(RETRY_SECONDS, self._recording.pop, key, None)
        else:
            del self._recording[key]

    async def _record_token(self, token: TokenId, now: datetime) -> None:
        calls = self._calls.take(token)
        try:
            await self._application.store.write(lambda uow: uow.tokens.touch(token, now, calls))
        except BaseException:
            self._calls.give_back(token, calls)
            raise

    async def _record_session(self, session: Session, now: datetime) -> None:
        await self._application.store.write(lambda uow: sessions.touch(uow, session, now))

    async def close(self) -> None:
        """End what is in progress."""
        tasks = list(self._recording.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


#: Tokens whose calls are counted; of the one that was used longest ago, less than a minute's calls are lost.
MAX_TOKENS = 10_000


class TokenCalls:
    """Calls of each valid token since its last use was recorded, by hour, in the memory of this process."""

    def __init__(self) -> None:
        self._counts: OrderedDict[TokenId, CallHours] = OrderedDict()

    def count(self, token: TokenId, now: datetime) -> None:
        """Count a call that was recognized."""
        self._counts[token] = self._counts.pop(token, NO_CALLS).add(1, now)
        if len(self._counts) > MAX_TOKENS:
            self._counts.popitem(last=False)

    def take(self, token: TokenId) -> CallHours:
        """Return the calls and begin anew."""
        return self._counts.pop(token, NO_CALLS)

    def give_back(self, token: TokenId, calls: CallHours) -> None:
        """Count calls again that could not be recorded."""
        self._counts[token] = self._counts.pop(token, NO_CALLS).add_all(calls)

    def pending(self, token: TokenId) -> CallHours:
        return self._counts.get(token, NO_CALLS)
