"""A sender of webhooks that records each request and returns scripted replies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from builderd.core.errors import MachineFault
from builderd.tokens.port import Reply


@dataclass
class FakeWebhookSender:
    """Sender that returns each URL's ``replies`` in turn, then 200; raises ``faults`` in turn before anything is sent.

    ``sent`` records ``(url, headers, body)``.
    """

    sent: list[tuple[str, Mapping[str, str], bytes]] = field(default_factory=list)
    replies: dict[str, list[Reply]] = field(default_factory=dict)
    refused: set[str] = field(default_factory=set)
    faults: list[MachineFault] = field(default_factory=list)

    async def post(self, url: str, headers: Mapping[str, str], body: bytes) -> Reply:
        if self.faults:
            raise self.faults.pop(0)
        self.sent.append((url, headers, body))
        replies = self.replies.get(url)
        return replies.pop(0) if replies else Reply(200, "")

    def refuses(self, url: str) -> bool:
        return url in self.refused
