"""Gates that code passes on its way to visitors: installer, scanners and testers.

Everything that an app answers to a tester is untrusted: it is read within limits, and interpreted (pages, documents)
only where nothing but this one app can be reached.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol

from builderd.code.model import Bundle
from builderd.code.sources import Kind, References
from builderd.core.ids import TenantId
from builderd.credentials.model import PackageSources
from builderd.dependencies.model import LayerPlan
from builderd.previews.model import Address
from builderd.qa.model import Check, Screenshot, Visit
from builderd.review.model import Hit, ReviewLimits


class Installer(Protocol):
    def plan(
        self,
        bundle: Bundle,
        base_id: str,
        tenant: TenantId,
        *,
        install_scripts: bool = False,
        dev: bool = False,
        packages: Collection[str] = (),
        added: Collection[str] = (),
    ) -> LayerPlan | None:
        """Return the plan for the dependencies that the bundle declares, or None when it declares none.

        With ``install_scripts`` the install scripts of packages are run; with ``dev`` a Node project's development
        dependencies are installed too, as its build needs them. ``packages`` are of Debian, besides the bundle's.

        Raises ``InstallFailed`` when the request itself is refused (and says which line, and why).
        """

    def from_sources(self, plan: LayerPlan, sources: PackageSources, tenant: TenantId) -> LayerPlan:
        """Return the plan with these private indexes: a layer of the tenant alone, and no write to the shared cache."""

    def fallback(self, plan: LayerPlan, output: Sequence[str], tenant: TenantId) -> LayerPlan | None:
        """Return a plan that may still succeed after this one failed with this output, or None.

        The first plan takes wheels only; building from source runs foreign code and gets a plan of its own.
        """

    def from_source(self, plan: LayerPlan, tenant: TenantId) -> LayerPlan | None:
        """Return the plan that ``fallback`` would return, to check whether its layer exists already.

        None for a plan that builds from source already.
        """

    def explain(self, output: Sequence[str]) -> str:
        """Return the resolver's own message, as the user should read it."""


NOTHING_RUN: Mapping[str, Kind] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Scan:
    """``hits`` in no order; ``references`` by path, of the files that could be read as code.

    ``hooks`` are files, and commands, that an installer would run by itself. ``scanners`` as in a report.
    ``failure`` says why the scan is not whole: then nothing may pass for it.
    """

    hits: tuple[Hit, ...]
    references: Mapping[str, References]
    hooks: tuple[str, ...]
    scanners: Mapping[str, str]
    failure: str | None = None


class Scanner(Protocol):
    @property
    def name(self) -> str:
        """Names the scanner and its rules: other rules, another name. Part of the key of a kept report."""

    async def prepare(self) -> None:
        """Start the scanner's warm process; harmless when repeated. A scan without it takes longer."""

    async def scan(
        self, bundle: Bundle, limits: ReviewLimits, run: Mapping[str, Kind] = NOTHING_RUN, commands: str = ""
    ) -> Scan:
        """Scan the files within the limits; content never raises.

        Raises ``MachineFault`` where the scanner was killed or cannot be started, again after a retry. ``run`` are
        files, by path, that are started as another kind than their names say. ``commands`` are scanned too, one a
        line: a hit in them has no path.
        """

    async def close(self) -> None:
        """End what was kept warm."""


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

    async def look(self, target: Target) -> Check:
        """Load ``/`` once (``browser``): failed if it shows nothing and has errors on its console.

        Not judged without a browser, or while others are looked at.
        """

    async def browse(self, target: Target) -> Browsing:
        """Load ``/`` on a desktop and on a phone (``browser``, ``console``, ``accessibility``)."""
