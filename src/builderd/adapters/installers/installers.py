"""All installers as one: a bundle may need Python packages, Node.js packages, or both in one layer."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from builderd.adapters.installers import npm, uv
from builderd.adapters.installers.npm import NpmInstaller
from builderd.adapters.installers.uv import UvInstaller
from builderd.domain.bundles import Bundle
from builderd.domain.credentials import PackageSources
from builderd.domain.ids import TenantId
from builderd.domain.layers import LayerPlan

NPM_LINE = re.compile(r"npm (?:ERR!|error)")


@dataclass(frozen=True, slots=True)
class Installers:
    """Implements ``ports.installer.Installer``."""

    uv: UvInstaller
    npm: NpmInstaller

    def plan(
        self, bundle: Bundle, base_id: str, tenant: TenantId, *, install_scripts: bool = False, dev: bool = False
    ) -> LayerPlan | None:
        python = self.uv.plan(bundle, base_id, tenant)
        node = self.npm.plan(bundle, base_id, tenant, install_scripts=install_scripts, dev=dev)
        return _both(python, node) if python and node else python or node

    def from_sources(self, plan: LayerPlan, sources: PackageSources, tenant: TenantId) -> LayerPlan:
        parts = (plan.key, "sources", sources.fingerprint, tenant)
        steps = tuple(uv.with_sources(step, sources) for step in plan.steps)
        private = npm.with_sources(replace(plan, steps=steps), sources)
        return replace(private, key=hashlib.sha256("\n".join(parts).encode()).hexdigest())

    def fallback(self, plan: LayerPlan, output: Sequence[str], tenant: TenantId) -> LayerPlan | None:
        return self.from_source(plan, tenant) if self.uv.lacks_wheels(output) else None

    def from_source(self, plan: LayerPlan, tenant: TenantId) -> LayerPlan | None:
        if plan.runs_foreign_code or "requirements.txt" not in plan.inputs:
            return None
        wheels = self.uv.wheels(plan.key, plan.inputs).steps
        source = self.uv.from_source(plan, tenant)
        assert source is not None, "a plan of wheels runs no foreign code"
        # npm first: nothing that runs later sees files that a Python source build left in the layer.
        return replace(source, steps=(*(step for step in plan.steps if step not in wheels), *source.steps))

    def explain(self, output: Sequence[str]) -> str:
        npm_failed = any(NPM_LINE.match(line) for line in output)
        return self.npm.explain(output) if npm_failed else self.uv.explain(output)


def _both(python: LayerPlan, node: LayerPlan) -> LayerPlan:
    """Merge two plans. Steps without foreign code come first, so that none finds foreign files in the layer."""
    plans = sorted((python, node), key=lambda plan: (plan.runs_foreign_code, plan.may_run_code))
    return LayerPlan(
        key=hashlib.sha256(f"{python.key} and {node.key}".encode()).hexdigest(),
        inputs={**python.inputs, **node.inputs},
        steps=tuple(step for plan in plans for step in plan.steps),
        runs_foreign_code=any(plan.runs_foreign_code for plan in plans),
        compile_step=python.compile_step,
        may_run_code=any(plan.may_run_code for plan in plans),
    )
