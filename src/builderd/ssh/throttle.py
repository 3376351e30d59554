"""Slow down clients that guess tokens. A right token always gets in: only wrong ones are delayed, and none is refused.

An address may be a forwarder that all users share, so nothing is decided by it alone. Pure, but for what it remembers.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import ip_address

#: A wrong token is answered after so many seconds, doubled with each from this address, at most the last.
FIRST_DELAY, LAST_DELAY = 0.25, 4.0
#: After so many seconds without a wrong token, an address begins anew.
WINDOW = 600.0
#: Addresses that are remembered; the longest unseen are forgotten first.
MAX_ADDRESSES = 10_000
#: Wrong tokens of one address that wait for their answer at the same time; more are cut off at once.
MAX_DELAYED = 20
#: Connections that have not logged in yet, of one address and in all. One more ends another one, never itself.
MAX_PENDING, MAX_PENDING_TOTAL = 100, 500


@dataclass(eq=False, slots=True)
class Attempt:
    """A connection that has not logged in yet. ``end`` cuts it; ``has_keys`` says whether it got past key exchange."""

    key: str
    end: Callable[[], None]
    has_keys: Callable[[], bool]
    wrong: bool = False


class Throttle:
    def __init__(self) -> None:
        #: By address: how many wrong tokens it sent, and when the last.
        self._failures: OrderedDict[str, tuple[int, float]] = OrderedDict()
        #: By address, the oldest first.
        self._pending: dict[str, dict[Attempt, None]] = {}
        self._total = 0

    def enter(self, address: str, end: Callable[[], None], has_keys: Callable[[], bool]) -> Attempt:
        """Count a new connection; ``leave`` must follow. Where there are too many, another one of them is ended."""
        attempt = Attempt(_key(address), end, has_keys)
        of_address = self._pending.get(attempt.key, {})
        if len(of_address) >= MAX_PENDING:
            self._evict(of_address)
        elif self._total >= MAX_PENDING_TOTAL:
            self._evict(max(self._pending.values(), key=len))
        self._pending.setdefault(attempt.key, {})[attempt] = None
        self._total += 1
        return attempt

    def leave(self, attempt: Attempt) -> None:
        """It logged in, or went. Idempotent."""
        of_address = self._pending.get(attempt.key, {})
        if attempt not in of_address:
            return
        del of_address[attempt]
        self._total -= 1
        if not of_address:
            del self._pending[attempt.key]

    def failed(self, attempt: Attempt, now: float) -> float | None:
        """Note a wrong token: the seconds after which to say so, None to cut the connection off at once."""
        attempt.wrong = True
        count, last = self._failures.pop(attempt.key, (0, now))
        count = 1 if now - last > WINDOW else count + 1
        self._failures[attempt.key] = (count, now)
        if len(self._failures) > MAX_ADDRESSES:
            self._failures.popitem(last=False)
        if sum(one.wrong for one in self._pending.get(attempt.key, ())) > MAX_DELAYED:
            return None
        return float(min(FIRST_DELAY * 2 ** min(count - 1, 10), LAST_DELAY))

    def _evict(self, attempts: dict[Attempt, None]) -> None:
        """End the least likely to log in: a wrong token, else one that only holds a connection, else the oldest."""
        victim = min(attempts, key=lambda one: (not one.wrong, one.has_keys()))
        self.leave(victim)
        victim.end()


def _key(address: str) -> str:
    """An IPv6 network of 64 bits is one visitor's, who may choose among its addresses."""
    ip = ip_address(address.partition("%")[0])
    return address if ip.version == 4 else str(int(ip) >> 64)
