"""A sender of webhooks that records each request and returns scripted replies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from builderd.ports.webhooks import Reply


@dataclass
class FakeWebhookSender:
    """Sender that returns each URL's ``replies`` in turn, then 200. ``sent`` records ``(url, headers, body)``."""

    sent: list[tuple[str, Mapping[str, str], bytes]] = field(default_factory=list)
    replies: dict[str, list[Reply]] = field(default_factory=dict)
    refused: set[str] = field(default_factory=set)

    async def post(self, url: str, headers: Mapping[str, str], body: bytes) -> Reply:
        self.sent.append((url, headers, body))
        replies = self.replies.get(url)
        return replies.pop(0) if replies else Reply(200, "")

    def refuses(self, url: str) -> bool:
        return url in self.refused
