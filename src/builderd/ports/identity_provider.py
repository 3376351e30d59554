"""Identity provider (OpenID Connect): sends people's browsers back with a code, and says whose it is."""

from __future__ import annotations

from typing import Protocol

from builderd.domain.tokens import Attempt, Identity


class IdentityProvider(Protocol):
    @property
    def name(self) -> str:
        """Return the name that the sign-in page shows."""

    async def url(self, attempt: Attempt) -> str:
        """Return where the browser signs in. Raises ``MachineFault`` when the provider cannot be reached."""

    async def identity(self, code: str, attempt: Attempt) -> Identity:
        """Return the person of a code, which is spent.

        Raises ``Unauthenticated`` for a wrong code or token, and for a person without a tenant or scope here;
        ``MachineFault`` when the provider cannot be reached.
        """
