"""Rate limits: how many calls a token may make, and how many wrong tokens may come from one address.

Both are token buckets (a minute's worth may come at once, and flows back evenly) in the memory of this process: a
restart forgives, and each of several control planes counts for itself.
"""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from builderd.domain.addresses import network_of
from builderd.domain.errors import RateLimited
from builderd.domain.ids import secret_hash

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
        level = self._level(key)
        left = level - 1 if level >= 1 else level
        self._levels[key] = (left, self._now())
        self._levels.move_to_end(key)
        if len(self._levels) > MAX_BUCKETS:
            self._levels.popitem(last=False)
        return self._status(left, wanted=0 if level >= 1 else 1)

    def forget(self, key: str) -> None:
        self._levels.pop(key, None)

    def _level(self, key: str) -> float:
        level, since = self._levels.get(key, (float(self.limit), self._now()))
        return min(self.limit, level + (self._now() - since) * self.limit / WINDOW)

    def _status(self, level: float, wanted: int) -> RateLimitStatus:
        per_second = self.limit / WINDOW
        missing = wanted - level
        retry = math.ceil(missing / per_second) if missing > 0 else None
        return RateLimitStatus(self.limit, int(level), math.ceil((self.limit - level) / per_second), retry)


class Rates:
    """Limits: ``requests`` a minute for each token, ``failures`` a minute for each address; 0: unlimited."""

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
