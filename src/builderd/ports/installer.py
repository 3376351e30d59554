"""The installer: reads the dependencies that a bundle declares, and plans their layer. Runs nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from builderd.domain.bundles import Bundle
from builderd.domain.credentials import PackageSources
from builderd.domain.ids import TenantId
from builderd.domain.layers import LayerPlan


class Installer(Protocol):
    def plan(
        self, bundle: Bundle, base_id: str, tenant: TenantId, *, install_scripts: bool = False, dev: bool = False
    ) -> LayerPlan | None:
        """Return the plan for the dependencies that the bundle declares, or None when it declares none.

        With ``install_scripts`` the install scripts of packages are run; with ``dev`` a Node project's development
        dependencies are installed too, as its build needs them.

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
