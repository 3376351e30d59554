"""A scanner in memory, whose findings a test scripts."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterator, Mapping

from builderd.code.model import Bundle
from builderd.code.sources import Kind
from builderd.core.errors import MachineFault
from builderd.qa.port import NOTHING_RUN, Scan
from builderd.review.model import Hit, ReviewLimits


class FakeScanner:
    """Implements ``ports.gates.Scanner``. ``dislikes`` maps a text to the rule that a line with it breaks.

    ``faults`` are raised first, one per scan; ``failure`` is set in every later scan. Scans wait while a test keeps
    ``open`` cleared.
    """

    def __init__(self, name: str = "fake") -> None:
        self.name = name
        self.dislikes: dict[str, str] = {}
        self.failure: str | None = None
        self.faults: list[MachineFault] = []
        self.open = asyncio.Event()
        self.open.set()
        self.scanned: list[str] = []
        self.is_warm = False

    async def prepare(self) -> None:
        self.is_warm = True

    async def scan(
        self, bundle: Bundle, limits: ReviewLimits, run: Mapping[str, Kind] = NOTHING_RUN, commands: str = ""
    ) -> Scan:
        self.scanned.append(bundle.hash)
        await self.open.wait()
        if self.faults:
            raise self.faults.pop(0)
        return Scan(tuple(self._hits(bundle)), {}, (), {self.name: "1"}, failure=self.failure)

    async def close(self) -> None:
        self.is_warm = False

    def _hits(self, bundle: Bundle) -> Iterator[Hit]:
        for file in bundle.files:
            for number, line in enumerate(file.content.decode(errors="replace").split("\n"), 1):
                for text, rule in self.dislikes.items():
                    if text in line:
                        mark = hashlib.sha256(line.encode()).hexdigest()
                        yield Hit(rule, file.path, number, line.strip(), mark, f"there is {text} in it", "Mend it")
