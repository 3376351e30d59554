"""All installers together: a bundle may ask for Python packages, for Node's, or for both in one layer."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from builderd.adapters.installers.npm import NpmInstaller
from builderd.adapters.installers.uv import UvInstaller
from builderd.domain.bundles import Bundle
from builderd.domain.ids import TenantId
from builderd.domain.layers import LayerPlan

NPM_SPEAKS = re.compile(r"npm (?:ERR!|error)")


@dataclass(frozen=True, slots=True)
class Installers:
    uv: UvInstaller
    npm: NpmInstaller

    def plan(
        self, bundle: Bundle, base_id: str, tenant: TenantId, *, install_scripts: bool = False
    ) -> LayerPlan | None:
        python = self.uv.plan(bundle, base_id, tenant)
        node = self.npm.plan(bundle, base_id, tenant, install_scripts=install_scripts)
        return _both(python, node) if python and node else python or node

    def fallback(self, plan: LayerPlan, output: Sequence[str], tenant: TenantId) -> LayerPlan | None:
        return self.from_source(plan, tenant) if self.uv.lacks_wheels(output) else None

    def from_source(self, plan: LayerPlan, tenant: TenantId) -> LayerPlan | None:
        if plan.runs_foreign_code or "requirements.txt" not in plan.inputs:
            return None
        wheels = self.uv.wheels(plan.key, plan.inputs).steps
        source = self.uv.from_source(plan, tenant)
        assert source is not None, "wheels alone run no foreign code"
        # Node's packages first: what a build of Python's left in the layer is then seen by nothing that runs later.
        return replace(source, steps=(*(step for step in plan.steps if step not in wheels), *source.steps))

    def explain(self, output: Sequence[str]) -> str:
        npm_failed = any(NPM_SPEAKS.match(line) for line in output)
        return self.npm.explain(output) if npm_failed else self.uv.explain(output)


def _both(python: LayerPlan, node: LayerPlan) -> LayerPlan:
    """One layer of both. What runs no foreign code comes first, so that nothing foreign is there yet."""
    plans = sorted((python, node), key=lambda plan: (plan.runs_foreign_code, plan.may_run_code))
    return LayerPlan(
        key=hashlib.sha256(f"{python.key} and {node.key}".encode()).hexdigest(),
        inputs={**python.inputs, **node.inputs},
        steps=tuple(step for plan in plans for step in plan.steps),
        runs_foreign_code=any(plan.runs_foreign_code for plan in plans),
        polish=python.polish,
        may_run_code=any(plan.may_run_code for plan in plans),
    )
