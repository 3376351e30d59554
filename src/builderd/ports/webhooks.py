"""The sender of webhooks: one request to a URL that a tenant chose, which may be hostile."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol


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
