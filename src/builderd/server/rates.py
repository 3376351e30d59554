"""Rate limits of tokens and addresses; last uses and calls of tokens, recorded without delaying requests.

Both limits are token buckets (a minute's worth may come at once, and flows back evenly) in the memory of this process:
a restart forgives, and each of several control planes counts for itself.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime
from functools import partial

from builderd.application import Application
from builderd.core.addresses import network_of
from builderd.core.errors import RateLimited, StoreUnavailable
from builderd.core.ids import TokenId, secret_hash
from builderd.core.loops import end_tasks
from builderd.sessions import service as sessions
from builderd.tokens.model import NO_CALLS, CallHours, Session

WINDOW = 60
#: Buckets of each kind that are kept, the last ones used; a forgotten key begins with a full bucket.
MAX_BUCKETS = 20_000


@dataclass(frozen=True, slots=True)
class RateLimitStatus:
    """Rate limit status: of ``limit`` calls a minute ``remaining`` are left now, and all in ``reset`` seconds.

    ``retry_after``: seconds until a call is possible again, None when this one is.
    """

    limit: int
    remaining: int
    reset: int
    retry_after: int | None = None


class Buckets:
    """One bucket a key, with room for a minute's ``limit``. ``now`` in seconds, from a clock that never steps."""

    def __init__(self, limit: int, now: Callable[[], float] = time.monotonic) -> None:
        self.limit = limit
        self._now = now
        #: (what is in it, as of when), the least recently used first.
        self._levels: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def __contains__(self, key: str) -> bool:
        return key in self._levels

    def take(self, key: str) -> RateLimitStatus:
        """Take one call out of the key's bucket, if there is one, and return the status."""
        level, since = self._levels.get(key, (float(self.limit), self._now()))
        level = min(self.limit, level + (self._now() - since) * self.limit / WINDOW)
        left = level - 1 if level >= 1 else level
        self._levels[key] = (left, self._now())
        self._levels.move_to_end(key)
        if len(self._levels) > MAX_BUCKETS:
            self._levels.popitem(last=False)
        return self._status(left, wanted=0 if level >= 1 else 1)

    def forget(self, key: str) -> None:
        self._levels.pop(key, None)

    def _status(self, level: float, wanted: int) -> RateLimitStatus:
        per_second = self.limit / WINDOW
        missing = wanted - level
        retry = math.ceil(missing / per_second) if missing > 0 else None
        return RateLimitStatus(self.limit, int(level), math.ceil((self.limit - level) / per_second), retry)


class Rates:
    """Limits: ``requests`` a minute for each token, wrong tokens (``failures``) for each address; 0: unlimited."""

    def __init__(self, requests: int = 6000, failures: int = 60, now: Callable[[], float] = time.monotonic) -> None:
        self._requests = Buckets(requests, now) if requests else None
        self._failures = Buckets(failures, now) if failures else None

    def admit(self, secret: str) -> RateLimitStatus | None:
        """Count a call before its token is looked up, if the token was valid lately; else return None.

        A call over the limit then costs no look-up.
        """
        is_known = self._requests is not None and secret_hash(secret) in self._requests
        return self.count(secret) if is_known else None

    def failed(self, address: str, secret: str) -> None:
        """Count an invalid token. Raises ``RateLimited`` while too many of them come from its address.

        Call it only after the look-up: behind a proxy all clients share one address, and a valid token must not be
        refused for the invalid ones of others. Guesses gain nothing by being looked up, since tokens are long and
        random.
        """
        if self._requests is not None:
            self._requests.forget(secret_hash(secret))
        status = self._failures.take(network_of(address)) if self._failures is not None else None
        if status is not None and status.retry_after is not None:
            raise RateLimited(
                "This token is unknown, expired or revoked, and too many such came from your address: "
                f"check it, and wait {status.retry_after} s.",
                retry_after=status.retry_after,
            )

    def count(self, secret: str) -> RateLimitStatus | None:
        """Count a call with a valid token and return its status; None when calls are not limited."""
        return self._requests.take(secret_hash(secret)) if self._requests is not None else None


def too_many(status: RateLimitStatus) -> RateLimited:
    """Return the error for a call over the limit."""
    return RateLimited(
        f"This token may make {status.limit} calls a minute: wait {status.retry_after} s.",
        retry_after=status.retry_after,
    )


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
        await end_tasks(*self._recording.values())


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
