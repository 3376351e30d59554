"""Calls of API tokens that the store does not have yet: they are added to it with the next record of a last use."""

from __future__ import annotations

from collections import OrderedDict

from builderd.domain.ids import TokenId

#: Tokens whose calls are counted; of the one that was used longest ago, less than a minute's calls are lost.
MAX_TOKENS = 10_000


class TokenCalls:
    """Number of calls of each valid token since its last use was recorded, in the memory of this process."""

    def __init__(self) -> None:
        self._counts: OrderedDict[TokenId, int] = OrderedDict()

    def count(self, token: TokenId) -> None:
        """Count a call that was recognized."""
        self._counts[token] = self._counts.pop(token, 0) + 1
        if len(self._counts) > MAX_TOKENS:
            self._counts.popitem(last=False)

    def take(self, token: TokenId) -> int:
        """Return the number of calls and begin anew."""
        return self._counts.pop(token, 0)

    def pending(self, token: TokenId) -> int:
        return self._counts.get(token, 0)
