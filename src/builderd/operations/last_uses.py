"""Last uses of API tokens, recorded without delaying the calls: the store may be locked, or take no writes."""

from __future__ import annotations

import asyncio
import logging
from datetime import datetime

from builderd.domain.errors import StoreUnavailable
from builderd.domain.ids import TokenId
from builderd.operations.token_calls import TokenCalls
from builderd.services.application import Application

#: Seconds for which a call waits for the record of its token's use.
WAIT_SECONDS = 0.2

log = logging.getLogger(__name__)


class LastUses:
    """Records in progress, at most one for each token."""

    def __init__(self, application: Application, calls: TokenCalls) -> None:
        self._application = application
        self._calls = calls
        self._recording: dict[TokenId, asyncio.Task[None]] = {}

    async def record(self, token: TokenId, now: datetime) -> None:
        """Record a use, with the calls since the one before; return after ``WAIT_SECONDS`` while that goes on.

        It is tried again with a later call, if the store cannot be written to.
        """
        if token in self._recording:
            return
        task = self._recording[token] = asyncio.create_task(self._record(token, now))
        await asyncio.wait({task}, timeout=WAIT_SECONDS)

    async def _record(self, token: TokenId, now: datetime) -> None:
        calls = self._calls.take(token)
        try:
            await self._application.store.write(lambda uow: uow.tokens.touch(token, now, calls))
        except StoreUnavailable as error:
            self._calls.give_back(token, calls)
            log.warning("last use of a token not recorded, retrying with a later call token=%s error=%s", token, error)
        finally:
            del self._recording[token]

    async def close(self) -> None:
        """End what is in progress."""
        tasks = list(self._recording.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
