"""Testers in memory, whose results a test scripts."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from builderd.qa.model import Check, CheckName, Outcome, Screenshot, Visit
from builderd.qa.port import Browsing, Target

#: The smallest PNG: one transparent pixel.
PIXEL = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010804000000b51c0c020000000b4944415478da6364f80f00010501"
    "01270718660000000049454e44ae426082"
)


class FakeTesters:
    """Implements ``ports.gates.Testers``. ``visit`` returns ``visits`` in turn, then repeats the last."""

    def __init__(self) -> None:
        self.visits: deque[Visit] = deque([Visit(200, 0.01)])
        self.calls: list[tuple[str, Target]] = []
        self.crawled: Sequence[Check] = (Check(CheckName.CRAWL, Outcome.PASSED, "1 page answered."),)
        self.probed: Sequence[Check] = (Check(CheckName.OPENAPI, Outcome.PASSED, "No OpenAPI document."),)
        self.browsed = Browsing(
            (Check(CheckName.BROWSER, Outcome.PASSED, "It loads."),), (Screenshot("desktop", 1, 1, PIXEL),)
        )

    async def visit(self, target: Target, path: str, timeout_seconds: float) -> Visit:
        self.calls.append(("visit", target))
        return self.visits.popleft() if len(self.visits) > 1 else self.visits[0]

    async def crawl(self, target: Target) -> Sequence[Check]:
        self.calls.append(("crawl", target))
        return self.crawled

    async def probe(self, target: Target) -> Sequence[Check]:
        self.calls.append(("probe", target))
        return self.probed

    async def look(self, target: Target) -> Check:
        self.calls.append(("look", target))
        return self.browsed.checks[0]

    async def browse(self, target: Target) -> Browsing:
        self.calls.append(("browse", target))
        return self.browsed
