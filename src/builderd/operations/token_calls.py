"""Calls of API tokens that the store does not have yet: they are added to it with the next record of a last use."""

from __future__ import annotations

from collections import OrderedDict
from datetime import datetime

from builderd.domain.ids import TokenId
from builderd.domain.tokens import NO_CALLS, CallHours

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
