"""The sender of webhooks: one request to a URL that a tenant chose, and so may be meant to harm."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Reply:
    """``status`` is None where there was no answer; ``note`` then says why, else it is the answer's beginning."""

    status: int | None
    note: str


class WebhookSender(Protocol):
    async def post(self, url: str, headers: Mapping[str, str], body: bytes) -> Reply:
        """Send it once, in bounded time, and raise nothing.

        Only to hosts all of whose addresses are public, or allowed by the operator; to just the address that was
        looked at; and following no redirect. What is refused reads like what cannot be reached: a tenant learns
        nothing of the networks around.
        """

    def refuses(self, url: str) -> bool:
        """Whether the URL names an address, and one at which nothing may be sent."""
