"""An installer with scripted answers. Without a script, it plans a ``requirements.txt`` as wheels only."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import replace

from builderd.code.model import Bundle
from builderd.core.errors import InstallFailed
from builderd.core.ids import TenantId
from builderd.credentials.model import PackageSources
from builderd.dependencies.model import BuildStep, Cache, LayerPlan

REQUEST = "requirements.txt"
FETCH = BuildStep("Installing", ("install",), network=True, cache=Cache.SHARED)
BUILD = BuildStep("Building", ("build",), network=True, cache=Cache.SCRATCH)


class FakeInstaller:
    """Installer scripted by its attributes.

    ``refusal``: every plan raises ``InstallFailed`` with it. ``has_fallback``: a failed wheels-only plan continues from
    source. ``needs_build``: plans build from source at once, as for packages without wheels. ``may_run_code``: plans
    are marked as for packages that may run code of their own.
    """

    def __init__(self) -> None:
        self.refusal: str | None = None
        self.has_fallback = False
        self.needs_build = False
        self.may_run_code = False

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
        request = bundle.file(REQUEST)
        if request is None:
            return None
        if self.refusal:
            raise InstallFailed(self.refusal)
        if self.needs_build or install_scripts:
            return _plan(request.content, BUILD, base_id, tenant)
        return replace(_plan(request.content, FETCH, base_id), may_run_code=self.may_run_code)

    def from_sources(self, plan: LayerPlan, sources: PackageSources, tenant: TenantId) -> LayerPlan:
        key = hashlib.sha256(f"{plan.key}{sources.fingerprint}{tenant}".encode()).hexdigest()
        return replace(plan, key=key, steps=tuple(replace(step, secrets=sources.secrets) for step in plan.steps))

    def fallback(self, plan: LayerPlan, output: Sequence[str], tenant: TenantId) -> LayerPlan | None:
        return self.from_source(plan, tenant) if self.has_fallback else None

    def from_source(self, plan: LayerPlan, tenant: TenantId) -> LayerPlan | None:
        if plan.runs_foreign_code:
            return None
        return _plan(plan.inputs[REQUEST], BUILD, plan.key, tenant)

    def explain(self, output: Sequence[str]) -> str:
        return "\n".join(output)


def _plan(request: bytes, step: BuildStep, *parts: str) -> LayerPlan:
    key = hashlib.sha256("\n".join((step.title, *parts)).encode() + request).hexdigest()
    return LayerPlan(key, {REQUEST: request}, (step,), runs_foreign_code=step is BUILD)
