"""Who guesses tokens is slowed down, then refused by address. Pure, but for what it remembers."""

from __future__ import annotations

from collections import OrderedDict
from ipaddress import ip_address

#: So many wrong tokens within so many seconds, and the address is refused until they are over.
MAX_FAILURES, WINDOW = 10, 600.0
FIRST_DELAY, LAST_DELAY = 0.25, 4.0
#: Addresses that are remembered; the longest unseen are forgotten first.
MAX_ADDRESSES = 10_000
#: Connections of one address that have not logged in yet.
MAX_PENDING = 20


class Throttle:
    def __init__(self) -> None:
        self._failures: OrderedDict[str, list[float]] = OrderedDict()
        self._pending: dict[str, int] = {}

    def enter(self, address: str, now: float) -> bool:
        """Whether a new connection of this address may try to log in; then ``leave`` must follow."""
        key = _key(address)
        if len(self._recent(key, now)) >= MAX_FAILURES or self._pending.get(key, 0) >= MAX_PENDING:
            return False
        self._pending[key] = self._pending.get(key, 0) + 1
        return True

    def leave(self, address: str) -> None:
        """It logged in, or went."""
        key = _key(address)
        left = self._pending.get(key, 0) - 1
        if left > 0:
            self._pending[key] = left
        else:
            self._pending.pop(key, None)

    def failed(self, address: str, now: float) -> float:
        """Note a wrong token; the seconds after which to say so."""
        key = _key(address)
        failures = [*self._recent(key, now), now]
        self._failures[key] = failures
        self._failures.move_to_end(key)
        while len(self._failures) > MAX_ADDRESSES:
            self._failures.popitem(last=False)
        return float(min(FIRST_DELAY * 2 ** (len(failures) - 1), LAST_DELAY))

    def _recent(self, key: str, now: float) -> list[float]:
        return [at for at in self._failures.get(key, ()) if at > now - WINDOW]


def _key(address: str) -> str:
    """An IPv6 network of 64 bits is one visitor's, who may choose among its addresses."""
    ip = ip_address(address.partition("%")[0])
    return address if ip.version == 4 else str(int(ip) >> 64)
