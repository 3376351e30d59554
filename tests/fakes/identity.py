"""An identity provider in memory, whose codes are handed out beforehand."""

from __future__ import annotations

from dataclasses import dataclass, field
from urllib.parse import urlencode

from builderd.core.errors import Unauthenticated
from builderd.tokens.model import Attempt, Identity


@dataclass
class FakeIdentityProvider:
    """``people`` by their codes; ``attempts`` that began."""

    people: dict[str, Identity] = field(default_factory=dict)
    attempts: list[Attempt] = field(default_factory=list)
    name: str = "single sign-on"

    async def url(self, attempt: Attempt) -> str:
        self.attempts.append(attempt)
        return f"https://id.example/authorize?{urlencode({'state': attempt.state, 'nonce': attempt.nonce})}"

    async def identity(self, code: str, attempt: Attempt) -> Identity:
        found = self.people.pop(code, None)
        if found is None or attempt not in self.attempts:
            raise Unauthenticated("The identity provider's code is spent or too old: sign in again.")
        return found
