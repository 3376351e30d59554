"""Bound the connections before login: guesses of tokens, and clients that do nothing.

An address may be a proxy that all users share, so no client is refused by address alone. Does no I/O.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from builderd.domain.addresses import network_of

#: Seconds until a wrong token is refused. Its connection counts until then.
REFUSAL_SECONDS = 1.0
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

    def _evict(self, attempts: dict[Attempt, None]) -> None:
        """Close the attempt least likely to log in: a wrong token, else one before key exchange, else the oldest."""
        victim = min(attempts, key=lambda one: (not one.wrong, one.has_keys()))
        self.leave(victim)
        victim.close()
