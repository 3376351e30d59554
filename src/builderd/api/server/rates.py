"""Rate limits: how many calls a token may make, and how many wrong tokens may come from one address.

Both are token buckets (a minute's worth may come at once, and flows back evenly) in the memory of this process: a
restart forgives, and each of several control planes counts for itself. Answers carry the fields of the IETF draft
(https://datatracker.ietf.org/doc/draft-ietf-httpapi-ratelimit-headers/11/), ``RateLimit-Policy`` and ``RateLimit``,
and the three of its earlier revisions, which most clients read.
"""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from builderd.api.server.connections import network_of
from builderd.domain.errors import RateLimited
from builderd.domain.ids import secret_hash

WINDOW = 60
#: Of each kind are remembered, the last ones used; who is forgotten begins with a full bucket.
MAX_BUCKETS = 20_000


@dataclass(frozen=True, slots=True)
class Standing:
    """What is left of ``limit`` calls a minute: ``remaining`` now, all of them in ``reset`` seconds.

    ``retry_after``: in so many seconds there is one again, None when there was one.
    """

    limit: int
    remaining: int
    reset: int
    retry_after: int | None = None

    def headers(self) -> Mapping[str, str]:
        """As they stand in an answer."""
        return {
            "RateLimit-Policy": f'"requests";q={self.limit};w={WINDOW}',
            "RateLimit": f'"requests";r={self.remaining};t={self.reset}',
            "RateLimit-Limit": str(self.limit),
            "RateLimit-Remaining": str(self.remaining),
            "RateLimit-Reset": str(self.reset),
        }


class Buckets:
    """One bucket a key, with room for a minute's ``limit``. ``now`` in seconds, from a clock that never steps."""

    def __init__(self, limit: int, now: Callable[[], float] = time.monotonic) -> None:
        self.limit = limit
        self._now = now
        #: (what is in it, as of when), the least recently used first.
        self._levels: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def __contains__(self, key: str) -> bool:
        return key in self._levels

    def look(self, key: str) -> Standing:
        """How it stands, nothing taken."""
        return self._standing(self._level(key), wanted=1)

    def take(self, key: str) -> Standing:
        """Take one out, if there is one."""
        level = self._level(key)
        left = level - 1 if level >= 1 else level
        self._levels[key] = (left, self._now())
        self._levels.move_to_end(key)
        if len(self._levels) > MAX_BUCKETS:
            self._levels.popitem(last=False)
        return self._standing(left, wanted=0 if level >= 1 else 1)

    def forget(self, key: str) -> None:
        self._levels.pop(key, None)

    def _level(self, key: str) -> float:
        level, since = self._levels.get(key, (float(self.limit), self._now()))
        return min(self.limit, level + (self._now() - since) * self.limit / WINDOW)

    def _standing(self, level: float, wanted: int) -> Standing:
        per_second = self.limit / WINDOW
        missing = wanted - level
        retry = math.ceil(missing / per_second) if missing > 0 else None
        return Standing(self.limit, int(level), math.ceil((self.limit - level) / per_second), retry)


class Rates:
    """``requests`` a minute and token, ``failures`` a minute and address; 0: as many as there come."""

    def __init__(self, requests: int = 6000, failures: int = 60, now: Callable[[], float] = time.monotonic) -> None:
        self._requests = Buckets(requests, now) if requests else None
        self._failures = Buckets(failures, now) if failures else None

    def admit(self, secret: str) -> Standing | None:
        """Before a token is looked up: count its call if it was good lately, so that one too many costs no look-up."""
        is_known = self._requests is not None and secret_hash(secret) in self._requests
        return self.count(secret) if is_known else None

    def failed(self, address: str, secret: str) -> None:
        """The token was none. Raises ``RateLimited`` while too many of that kind come from its address.

        Only once it was looked up: behind a proxy all share one address, and nobody's good token may be refused for
        the wrong ones of others. Guesses gain nothing by being looked up, since tokens are long and random.
        """
        if self._requests is not None:
            self._requests.forget(secret_hash(secret))
        standing = self._failures.take(network_of(address)) if self._failures is not None else None
        if standing is not None and standing.retry_after is not None:
            raise RateLimited(
                "This token is unknown, expired or revoked, and too many such came from your address: "
                f"check it, and wait {standing.retry_after} s.",
                retry_after=standing.retry_after,
            )

    def count(self, secret: str) -> Standing | None:
        """A call with a good token; None when calls are not counted."""
        return self._requests.take(secret_hash(secret)) if self._requests is not None else None


def too_many(standing: Standing) -> RateLimited:
    """The error of a call too many."""
    return RateLimited(
        f"This token may make {standing.limit} calls a minute: wait {standing.retry_after} s.",
        retry_after=standing.retry_after,
    )
