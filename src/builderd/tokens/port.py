"""Sealed secrets, and requests to hosts outside: the vault, the identity provider, webhooks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from builderd.tokens.model import Attempt, Identity


class Vault(Protocol):
    """Authenticated encryption. All calls are quick and do not block; sealing adds some 50 bytes."""

    def seal(self, secret: bytes, associated_data: str) -> bytes:
        """Encrypt the secret and bind it to the associated data: it opens only with the same.

        Associated data names where the secret is stored, such as ``credential/<tenant>/<name>``.
        """

    def open(self, sealed: bytes, associated_data: str) -> bytes:
        """Return the secret. Raises ``EngineUnavailable``: its key is missing, or it was damaged or moved."""

    def check(self) -> None:
        """Raise ``EngineUnavailable`` if the keys cannot be read. Makes no key."""

    def is_current(self, sealed: bytes) -> bool:
        """Return True if it is sealed with the key that ``seal`` uses now: False after a rotation, until resealed."""


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


@dataclass(frozen=True, slots=True)
class Reply:
    """A webhook's reply: ``status`` is None without an answer; ``note`` then says why, else it is its beginning."""

    status: int | None
    note: str


class WebhookSender(Protocol):
    async def post(self, url: str, headers: Mapping[str, str], body: bytes) -> Reply:
        """Send the request once, in bounded time. Raises only ``MachineFault``, when this machine cannot send.

        It goes only to hosts all of whose addresses are public or allowed by the operator, to exactly the address
        that was checked, and follows no redirect. A refusal reads like an unreachable host, so that a tenant learns
        nothing about the networks around.
        """

    def refuses(self, url: str) -> bool:
        """Return whether the URL's host is an IP address to which nothing may be sent."""
