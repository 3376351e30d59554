"""The testers: send requests to an app, as visitors and programs would, and report the results.

Everything that an app answers is untrusted: it is read within limits, and interpreted (pages, documents) only where
nothing but this one app can be reached.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from builderd.domain.previews import Address
from builderd.domain.qa import Check, Screenshot, Visit


@dataclass(frozen=True, slots=True)
class Target:
    """An app's direct address, and the URL by which its visitors know it (``<scheme>://<host>[:port]/``).

    ``h2c``: it speaks HTTP/2 without TLS, and ``visit`` only opens such a connection.
    """

    address: Address
    url: str
    h2c: bool = False


@dataclass(frozen=True, slots=True)
class Browsing:
    """Results of loading an app in a browser."""

    checks: Sequence[Check]
    screenshots: Sequence[Screenshot] = ()


class Testers(Protocol):
    """Tests of an app. None raises because of the app: a test without a result is a check that says so."""

    async def visit(self, target: Target, path: str, timeout_seconds: float) -> Visit:
        """Send one GET on a connection of its own, as the preview would; redirects are not followed.

        An app of HTTP/2 need not answer GET: its status is 200 once it has begun a connection.
        """

    async def crawl(self, target: Target) -> Sequence[Check]:
        """Crawl ``/`` and what it links to (``crawl``, ``links``, ``robots``): at most 50 pages, within seconds."""

    async def probe(self, target: Target) -> Sequence[Check]:
        """Look for an OpenAPI document, and try what it describes (``openapi``). Writes data."""

    async def browse(self, target: Target) -> Browsing:
        """Load ``/`` on a desktop and on a phone (``browser``, ``console``, ``accessibility``)."""
