"""The installer: knows how dependencies are asked for, and plans the layer that answers. Runs nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from builderd.domain.bundles import Bundle
from builderd.domain.ids import TenantId
from builderd.domain.layers import LayerPlan


class Installer(Protocol):
    def plan(
        self, bundle: Bundle, base_id: str, tenant: TenantId, *, install_scripts: bool = False
    ) -> LayerPlan | None:
        """The plan for what the bundle asks for, or None when it asks for nothing.

        With ``install_scripts`` the scripts that packages bring for their installation are run.

        Raises ``InstallFailed`` when the request itself is refused (and says which line, and why).
        """

    def fallback(self, plan: LayerPlan, output: Sequence[str], tenant: TenantId) -> LayerPlan | None:
        """A plan that may still succeed after this one failed with this output, or None.

        Wheels only come first; what must be built from source runs foreign code and gets a plan of its own.
        """

    def from_source(self, plan: LayerPlan, tenant: TenantId) -> LayerPlan | None:
        """What ``fallback`` would answer, to look whether it was made before; None for a plan that is one already."""

    def explain(self, output: Sequence[str]) -> str:
        """The resolver's own message, as the user should read it."""
