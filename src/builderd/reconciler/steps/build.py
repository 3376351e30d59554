"""Build: run a version's build command beside the app that serves, or find its result.

Recorded: the result's key, what the command prints, the stage's end. Its time is charged.
Left when killed: a half-made result, which the engine removes; a complete one is found and used again.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from dataclasses import replace

from builderd.application import Application
from builderd.code import service as bundles
from builderd.code.model import Bundle, folder_of
from builderd.core.errors import BuildFailed, InstallFailed
from builderd.dependencies.hints import build_hint, node_hint
from builderd.dependencies.model import (
    APP,
    NODE_MODULES,
    AppBuild,
    BuildOutcome,
    BuildStep,
    Cache,
    LayerPlan,
    MadeLayer,
)
from builderd.money import admission
from builderd.reconciler import record as transitions
from builderd.reconciler.builds import BuildLog, Builds, own_key
from builderd.reconciler.failures import SHOWN_CHARACTERS, SHOWN_LINES
from builderd.reconciler.observe import WorkItem
from builderd.reconciler.record import Result, Transition
from builderd.sandboxes.model import LogLine, LogStream
from builderd.versions.model import Version

#: Part of every key: increment it when a build of the same files makes something else.
RECIPE = 1
#: The home of a build is thrown away, so that caches of tools do not become files of the version.
HOME = "/tmp"  # noqa: S108 -- the sandbox's own
ENVIRONMENT = {
    "PATH": f"/venv/bin:{APP}/{NODE_MODULES}/.bin:/{NODE_MODULES}/.bin:/usr/local/bin:/usr/bin:/bin",
    "VIRTUAL_ENV": "/venv",
    "LANG": "C.UTF-8",
    "PYTHONUNBUFFERED": "1",
    "npm_config_update_notifier": "false",
    "npm_config_fund": "false",
    "npm_config_audit": "false",
}

BUILT_BEFORE = "The same files were built before: that result is used again."


async def build(app: Application, builds: Builds, item: WorkItem) -> Result:
    try:
        built = await _make(app, builds, item)
    except BuildFailed as failure:
        return transitions.stage_failed(app, item, "build", failure.code, failure.message)
    return Result(lambda transition: _built(transition, item.version, built))


def _built(transition: Transition, version: Version, build: MadeLayer) -> None:
    """The version's files are built. The build log says so also where that was done before."""
    uow = transition.uow
    uow.versions.save(replace(uow.versions.require(version.builder_id, version.number), build_key=build.key))
    if build.reused:
        line = LogLine(transition.now, LogStream.BUILD, BUILT_BEFORE)
        uow.build_logs.add(version.builder_id, version.number, [line])
    note = "reused" if build.reused else "made"
    transitions.stage_finished(transition, "build", seconds=build.seconds, ok=True, note=note, reused=build.reused)


async def _make(app: Application, builds: Builds, item: WorkItem) -> MadeLayer:
    """Run the version's build command, or find its result. Raises ``BuildFailed`` with the command's last lines."""
    tenant, key = item.builder.tenant_id, _plan(app, item, await bundles.fetch(app, item.version)).key
    try:
        if await app.engine.layers.has_layer(key):
            await admission.check_reuse(app, tenant, key)
            return MadeLayer(key, 0.0, reused=True)
        async with builds.slot(tenant), BuildLog(app, item) as log:
            bundle = await bundles.fetch(app, item.version)  # anew: what waits has no bundle in memory
            bounded = await admission.limit_plan(app, tenant, _plan(app, item, bundle))
            outcome = await builds.run(item.builder, bounded, log)
    except InstallFailed as refusal:  # the limit of all layers
        raise BuildFailed(refusal.message) from refusal
    if not outcome.ok:
        timeout = app.limits.build_timeout
        raise BuildFailed(await asyncio.to_thread(_explain, item, bundle, outcome, timeout))
    return MadeLayer(key, outcome.seconds, outcome.reused)


def _plan(app: Application, item: WorkItem, bundle: Bundle) -> LayerPlan:
    """Return the plan of the version's build. Its result is the tenant's alone: the command is the tenant's code."""
    settings, tenant = item.version.settings, item.builder.tenant_id
    layer = item.version.layer_key or None
    decisive = [RECIPE, app.engine.layers.base_id, tenant, bundle.hash, layer, settings.build]
    decisive.append(sorted(settings.variables.items()))
    if settings.root:
        decisive.append(settings.root)
    step = BuildStep(
        title=f"Building: {settings.build}",
        argv=("/bin/sh", "-ec", settings.build),
        network=True,
        cache=Cache.NONE,
        env={**ENVIRONMENT, "HOME": HOME, **settings.variables},
        timeout_seconds=max(1, round(app.limits.build_timeout)),
    )
    plan = LayerPlan(
        key=hashlib.sha256(f"app build\n{json.dumps(decisive)}".encode()).hexdigest(),
        inputs={},
        steps=(step,),
        runs_foreign_code=True,
        tenant=tenant,
        app=AppBuild(bundle, layer, settings.root),
    )
    return own_key(plan, item)


def _explain(item: WorkItem, bundle: Bundle, outcome: BuildOutcome, timeout_seconds: float) -> str:
    """Return the message of a failed build: the reason, its last lines, and the next command."""
    command = item.version.settings.build
    if outcome.out_of_memory:
        why = f"The build ({command}) was killed: out of memory. Have it use less, or build before the deployment."
    elif outcome.timed_out:
        why = (
            f"The build ({command}) did not end within {timeout_seconds:g} s (limits.build_timeout), and was stopped. "
            "Does it start a server? That is the entrypoint's work."
        )
    else:
        root = item.version.settings.root
        lacking = build_hint(outcome.output[-SHOWN_LINES:], folder_of(bundle, root), root)
        hint = node_hint(outcome.output) or lacking
        why = f"The build ({command}) failed with exit code {outcome.exit_code}.{hint and f' {hint}'}"
    lines = "\n".join(line[:SHOWN_CHARACTERS] for line in outcome.output[-SHOWN_LINES:])
    more = f'All of its lines: builderd logs {item.builder.name} --stream build. To deploy without it: build = "".'
    return f"{why} Its last lines:\n{lines}\n{more}" if lines else f"{why} It wrote nothing. {more}"
