"""The testers: what asks an app, as visitors and programs would, and tells what came back.

Everything that an app answers is hostile: it is read within limits, and what interprets it (pages, documents) does so
where nothing but this one app can be reached.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from builderd.domain.previews import Address
from builderd.domain.qa import Check, Screenshot
from builderd.domain.qa_gate import Visit


@dataclass(frozen=True, slots=True)
class Target:
    """Where an app is reached directly, and the URL by which its visitors know it (``<scheme>://<host>[:port]/``)."""

    address: Address
    url: str


@dataclass(frozen=True, slots=True)
class Browsing:
    """What a browser made of an app."""

    checks: Sequence[Check]
    screenshots: Sequence[Screenshot] = ()


class Testers(Protocol):
    """None of these raises for what an app does; what could not be found out is a check that says so."""

    async def visit(self, target: Target, path: str, timeout_seconds: float) -> Visit:
        """One GET on a connection of its own, as the preview would send it; redirects are not followed."""

    async def crawl(self, target: Target) -> Sequence[Check]:
        """``/`` and what it links to (``crawl``, ``links``, ``robots``): at most 50 pages, within seconds."""

    async def probe(self, target: Target) -> Sequence[Check]:
        """Look for an OpenAPI document, and try what it describes (``openapi``). Writes data."""

    async def browse(self, target: Target) -> Browsing:
        """Load ``/`` on a desktop and on a phone (``browser``, ``console``, ``accessibility``)."""
