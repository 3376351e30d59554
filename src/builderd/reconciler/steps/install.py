"""Install: make the layer with a version's dependencies, or find it made.

Recorded: the layer's key, what the installers print, the stage's end. Code of packages that ran is charged.
Left when killed: a half-made layer, which the engine removes; a complete one is found and used again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace

from builderd.application import Application
from builderd.code import service as bundles
from builderd.code.model import Bundle
from builderd.core.errors import InstallFailed, NotFound
from builderd.credentials import service as credentials
from builderd.credentials.model import Masker
from builderd.dependencies.hints import install_hint, pin_notes, unread_notes
from builderd.dependencies.model import BUILD_RESOURCES, BuildOutcome, LayerPlan, MadeLayer
from builderd.money import admission
from builderd.reconciler import record as transitions
from builderd.reconciler.builds import BuildLog, Builds, own_key
from builderd.reconciler.observe import WorkItem
from builderd.reconciler.record import Result, Transition
from builderd.sandboxes.model import LogLine, LogStream
from builderd.versions.model import NO_LAYER, Version, ignored_names

REUSED = "The requirements are as they were before: their layer is reused."


async def install(app: Application, builds: Builds, item: WorkItem) -> Result:
    try:
        installed = await make_layer(app, builds, item)
    except InstallFailed as failure:
        return transitions.stage_failed(app, item, "install", failure.code, failure.message)
    return Result(lambda transition: _installed(transition, item.version, installed), durable=False)


def _installed(transition: Transition, version: Version, layer: MadeLayer) -> None:
    """The version's layer is there. The build log says so also where nothing had to be built."""
    uow, now = transition.uow, transition.now
    uow.versions.save(replace(uow.versions.require(version.builder_id, version.number), layer_key=layer.key))
    note = "reused" if layer.reused else "made"
    if layer.key == NO_LAYER:
        note = "nothing to install"
    elif layer.reused:
        uow.build_logs.add(version.builder_id, version.number, [LogLine(now, LogStream.BUILD, REUSED)])
    transitions.stage_finished(transition, "install", seconds=layer.seconds, ok=True, note=note, reused=layer.reused)


async def make_layer(app: Application, builds: Builds, item: WorkItem) -> MadeLayer:
    """Make the layer, or find it made. Raises ``InstallFailed`` with the installer's words."""
    files, tenant = await bundles.fetch_root(app, item.version), item.builder.tenant_id
    settings, base = item.version.settings, app.engine.layers.base_id
    scripts, dev, packages = settings.install_scripts, bool(settings.build), settings.packages
    added = settings.detected.get("added", ())
    plan = app.installer.plan(files, base, tenant, install_scripts=scripts, dev=dev, packages=packages, added=added)
    await _name_unread(app, item, files)
    del files  # neither while this waits nor while the layer is built
    if plan is None:
        return MadeLayer(NO_LAYER, 0.0, reused=True)
    complete, masker = await _completion(app, item)
    for known in (plan, app.installer.from_source(plan, tenant)):
        if known is not None and await app.engine.layers.has_layer(key := complete(known).key):
            await admission.check_reuse(app, tenant, key)
            return MadeLayer(key, 0.0, reused=True)
    async with builds.slot(tenant), BuildLog(app, item, masker) as log:
        bounded = await admission.limit_plan(app, tenant, replace(plan, tenant=tenant))
        made, outcome, seconds = await _make(app, builds, item, bounded, complete, log)
    if not outcome.ok:
        bundle = await bundles.fetch_root(app, item.version)
        message = await asyncio.to_thread(_explain, app, made, outcome, bundle)
        raise InstallFailed(masker.text(message))
    return MadeLayer(made.key, seconds, outcome.reused)


async def _completion(app: Application, item: WorkItem) -> tuple[Callable[[LayerPlan], LayerPlan], Masker]:
    """Return what completes an installer's plan for this version: its private indexes, and layers of its own.

    Raises ``InstallFailed`` for a credential that is gone.
    """
    tenant, names = item.builder.tenant_id, item.version.settings.credentials
    if not names:
        return lambda plan: own_key(plan, item), Masker(())
    try:
        sources, masker = await app.store.read(lambda uow: credentials.package_sources(uow, app.vault, tenant, names))
    except NotFound as lack:
        raise InstallFailed(lack.message) from lack
    if sources is None:
        return lambda plan: own_key(plan, item), masker
    return lambda plan: own_key(app.installer.from_sources(plan, sources, tenant), item), masker


async def _name_unread(app: Application, item: WorkItem, bundle: Bundle) -> None:
    """Name in the log the files that people expect to be read, and versions that do not run here."""
    env_file = item.version.settings.env_file
    notes = [*unread_notes({file.path for file in bundle.files}, env_file), *pin_notes(bundle)]
    ignored = await asyncio.to_thread(ignored_names, bundle, env_file) if env_file else ()
    notes += [f"{', '.join(ignored)} of {env_file} is not used: the platform sets it."] if ignored else []
    if notes:
        async with BuildLog(app, item) as log:
            for note in notes:
                log.line(note)


async def _make(
    app: Application,
    builds: Builds,
    item: WorkItem,
    plan: LayerPlan,
    complete: Callable[[LayerPlan], LayerPlan],
    log: BuildLog,
) -> tuple[LayerPlan, BuildOutcome, float]:
    """Make the layer, from source where wheels are lacking; return the last plan, its outcome, and all seconds."""
    made = complete(plan)
    outcome = await builds.run(item.builder, made, log)
    if outcome.ok or not (source := app.installer.fallback(plan, outcome.output, item.builder.tenant_id)):
        return made, outcome, outcome.seconds
    log.line("No wheels for everything: building from source in a sandbox of its own.")
    source = replace(source, tenant=plan.tenant, limit_bytes=plan.limit_bytes, quota_bytes=plan.quota_bytes)
    made, before = complete(source), outcome.seconds
    outcome = await builds.run(item.builder, made, log)
    return made, outcome, before + outcome.seconds


def _explain(application: Application, plan: LayerPlan, outcome: BuildOutcome, bundle: Bundle) -> str:
    if outcome.out_of_memory:
        return (
            f"The installer was killed for want of memory (limit {BUILD_RESOURCES.memory:g} GB): leave out packages, "
            "or ask for versions that come as wheels, since a build from source takes most."
        )
    if outcome.timed_out:
        seconds = max(step.timeout_seconds for step in plan.steps)
        return (
            f"The installer did not end within {seconds} s: leave out packages, or ask for versions that come as "
            "wheels. If an index was slow, deploy again."
        )
    hint = install_hint(outcome.output, bundle)
    return "\n".join(filter(None, (hint, application.installer.explain(outcome.output))))
