"""Delay clients that guess tokens. A valid token is never delayed or refused for the wrong ones of its address.

An address may be a proxy that all users share, so no client is refused by address alone. Does no I/O.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from builderd.domain.addresses import network_of

#: Delay of the first refusal of an address in seconds; doubled with each wrong token up to the maximum.
FIRST_DELAY, MAX_DELAY = 0.25, 4.0
#: Seconds without a wrong token after which an address starts again with the first delay.
WINDOW = 600.0
#: Addresses in memory; those with the oldest wrong token are dropped first.
MAX_ADDRESSES = 10_000
#: Delayed refusals of one address at the same time; further wrong tokens are disconnected at once.
MAX_DELAYED = 20
#: Connections before login, of one address and in all. One more closes another one, never itself.
MAX_PENDING, MAX_PENDING_TOTAL = 100, 500


@dataclass(eq=False, slots=True)
class Attempt:
    """A connection before login. ``close`` ends it; ``has_keys`` returns True once key exchange is done."""

    key: str
    close: Callable[[], None]
    has_keys: Callable[[], bool]
    wrong: bool = False


class Throttle:
    def __init__(self) -> None:
        #: By address: the number of wrong tokens, and the time of the last one.
        self._failures: OrderedDict[str, tuple[int, float]] = OrderedDict()
        #: Connections before login by address, the oldest first.
        self._pending: dict[str, dict[Attempt, None]] = {}
        self._total = 0

    def enter(self, address: str, close: Callable[[], None], has_keys: Callable[[], bool]) -> Attempt:
        """Count a new connection; ``leave`` must follow. Above the limit another connection is closed for it."""
        attempt = Attempt(network_of(address), close, has_keys)
        of_address = self._pending.get(attempt.key, {})
        if len(of_address) >= MAX_PENDING:
            self._evict(of_address)
        elif self._total >= MAX_PENDING_TOTAL:
            self._evict(max(self._pending.values(), key=len))
        self._pending.setdefault(attempt.key, {})[attempt] = None
        self._total += 1
        return attempt

    def leave(self, attempt: Attempt) -> None:
        """Stop counting a connection that logged in or was closed. Idempotent."""
        of_address = self._pending.get(attempt.key, {})
        if attempt not in of_address:
            return
        del of_address[attempt]
        self._total -= 1
        if not of_address:
            del self._pending[attempt.key]

    def failed(self, attempt: Attempt, now: float) -> float | None:
        """Count a wrong token. Return the delay of its refusal in seconds, or None to disconnect at once."""
        attempt.wrong = True
        count, last = self._failures.pop(attempt.key, (0, now))
        count = 1 if now - last > WINDOW else count + 1
        self._failures[attempt.key] = (count, now)
        if len(self._failures) > MAX_ADDRESSES:
            self._failures.popitem(last=False)
        if sum(one.wrong for one in self._pending.get(attempt.key, ())) > MAX_DELAYED:
            return None
        return float(min(FIRST_DELAY * 2 ** min(count - 1, 10), MAX_DELAY))

    def _evict(self, attempts: dict[Attempt, None]) -> None:
        """Close the attempt least likely to log in: a wrong token, else one before key exchange, else the oldest."""
        victim = min(attempts, key=lambda one: (not one.wrong, one.has_keys()))
        self.leave(victim)
        victim.close()
