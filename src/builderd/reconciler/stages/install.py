"""The install stage: plan the version's layer, make it, and keep what the installer wrote."""

from __future__ import annotations

import asyncio
import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

from builderd.domain.builders import Builder
from builderd.domain.bundles import Bundle
from builderd.domain.credentials import Masker, PackageSources
from builderd.domain.errors import BuildFailed, InstallFailed, NotFound
from builderd.domain.hints import install_hint, pin_notes, unread_notes
from builderd.domain.ids import TenantId
from builderd.domain.layers import BUILD_RESOURCES, BuildOutcome, Built, Installed, LayerPlan
from builderd.domain.sandboxes import LogLine, LogStream
from builderd.domain.versions import NO_LAYER, ignored_names
from builderd.ports.installer import Installer
from builderd.reconciler.core.observe import WorkItem
from builderd.reconciler.stages.app_build import explain_build, plan_build
from builderd.reconciler.stages.build_charges import BuildCharges
from builderd.services import admission, bundles, credentials
from builderd.services.application import Application
from builderd.store import UnitOfWork

#: How often the lines of a build are written down while it continues, in seconds.
FLUSH_INTERVAL = 0.3
#: What is kept of one build's lines, and of one line: what a build prints is the user's own, and could be endless.
MAX_LINES, MAX_CHARACTERS = 5_000, 1_000
#: Layers that are made at the same time, and those of one tenant among them.
MAX_BUILDS, MAX_OF_TENANT = 8, 2


@dataclass(frozen=True, slots=True)
class _Final:
    """Completion of an installer's plan for one version: its private indexes, and layers of its own."""

    installer: Installer
    item: WorkItem
    sources: PackageSources | None
    masker: Masker

    @property
    def tenant(self) -> TenantId:
        return self.item.builder.tenant_id

    def of(self, plan: LayerPlan) -> LayerPlan:
        private = plan if self.sources is None else self.installer.from_sources(plan, self.sources, self.tenant)
        return _own(private, self.item)


class LayerInstalls:
    """Builds layers, a few at once, with a limit for each tenant so that it does not delay others."""

    def __init__(self, application: Application) -> None:
        self._app = application
        self._charges = BuildCharges(application)
        self._concurrency = asyncio.Semaphore(MAX_BUILDS)
        self._tenant_concurrency: defaultdict[TenantId, asyncio.Semaphore] = defaultdict(
            lambda: asyncio.Semaphore(MAX_OF_TENANT)
        )

    async def build(self, item: WorkItem) -> Built:
        """Run the version's build command, or find its result. Raises ``BuildFailed`` with the command's last lines."""
        tenant, key = item.builder.tenant_id, self._plan_build(item, await bundles.fetch(self._app, item.version)).key
        try:
            if await self._app.engine.layers.has_layer(key):
                await admission.check_reuse(self._app, tenant, key)
                return Built(key, 0.0, reused=True)
            async with self._tenant_concurrency[tenant], self._concurrency, BuildLog(self._app, item) as log:
                bundle = await bundles.fetch(self._app, item.version)  # anew: what waits has no bundle in memory
                bounded = await admission.limit_plan(self._app, tenant, self._plan_build(item, bundle))
                outcome = await self._run(item.builder, bounded, log)
        except InstallFailed as refusal:  # the limit of all layers
            raise BuildFailed(refusal.message) from refusal
        if not outcome.ok:
            timeout = self._app.limits.build_timeout
            raise BuildFailed(await asyncio.to_thread(explain_build, item, bundle, outcome, timeout))
        return Built(key, outcome.seconds, outcome.reused)

    def _plan_build(self, item: WorkItem, bundle: Bundle) -> LayerPlan:
        return _own(plan_build(item, bundle, self._app.engine.layers.base_id, self._app.limits.build_timeout), item)

    async def install(self, item: WorkItem) -> Installed:
        """Make the layer, or find it made. Raises ``InstallFailed`` with the installer's words."""
        files, tenant = await bundles.fetch_root(self._app, item.version), item.builder.tenant_id
        plan = _plan(self._app, item, files)
        await self._name_unread(item, files)
        del files  # neither while this waits nor while the layer is built
        if plan is None:
            return Installed(NO_LAYER, 0.0, reused=True)
        final = await self._final(item)
        for known in (plan, self._app.installer.from_source(plan, tenant)):
            if known is not None and await self._app.engine.layers.has_layer(key := final.of(known).key):
                await admission.check_reuse(self._app, tenant, key)
                return Installed(key, 0.0, reused=True)
        async with self._tenant_concurrency[tenant], self._concurrency, BuildLog(self._app, item, final.masker) as log:
            plan = await admission.limit_plan(self._app, tenant, replace(plan, tenant=tenant))
            return await self._build(plan, final, log)

    async def _final(self, item: WorkItem) -> _Final:
        """Return the completion of this version's plans. Raises ``InstallFailed`` for a credential that is gone."""
        tenant, names = item.builder.tenant_id, item.version.settings.credentials
        if not names:
            return _Final(self._app.installer, item, None, Masker(()))
        try:
            sources, masker = await self._app.store.read(
                lambda uow: credentials.package_sources(uow, self._app.vault, tenant, names)
            )
        except NotFound as lack:
            raise InstallFailed(lack.message) from lack
        return _Final(self._app.installer, item, sources, masker)

    async def _name_unread(self, item: WorkItem, bundle: Bundle) -> None:
        """Name in the log the files that people expect to be read, and versions that do not run here."""
        env_file = item.version.settings.env_file
        notes = [*unread_notes({file.path for file in bundle.files}, env_file), *pin_notes(bundle)]
        ignored = await asyncio.to_thread(ignored_names, bundle, env_file) if env_file else ()
        notes += [f"{', '.join(ignored)} of {env_file} is not used: the platform sets it."] if ignored else []
        if notes:
            async with BuildLog(self._app, item) as log:
                for note in notes:
                    log.line(note)

    async def _build(self, plan: LayerPlan, final: _Final, log: BuildLog) -> Installed:
        installer, builder = self._app.installer, final.item.builder
        made = final.of(plan)
        outcome = await self._run(builder, made, log)
        seconds = outcome.seconds
        fallback = None if outcome.ok else installer.fallback(plan, outcome.output, final.tenant)
        if fallback is not None:
            log.line("No wheels for everything: building from source in a sandbox of its own.")
            made = final.of(
                replace(fallback, tenant=plan.tenant, limit_bytes=plan.limit_bytes, quota_bytes=plan.quota_bytes)
            )
            outcome = await self._run(builder, made, log)
            seconds += outcome.seconds
        if not outcome.ok:
            bundle = await bundles.fetch_root(self._app, final.item.version)
            message = await asyncio.to_thread(_explain, self._app, made, outcome, bundle)
            raise InstallFailed(final.masker.text(message))
        return Installed(made.key, seconds, outcome.reused)

    async def _run(self, builder: Builder, plan: LayerPlan, log: BuildLog) -> BuildOutcome:
        """Make the layer. Only what runs no code of a package is free."""
        if not plan.needs_review_first:
            return await self._app.engine.layers.build_layer(plan, log.line)
        return await self._charges.charged(builder, lambda: self._app.engine.layers.build_layer(plan, log.line))


def _own(plan: LayerPlan, item: WorkItem) -> LayerPlan:
    """A builder that was once installed afresh has layers of its own from then on."""
    since = item.version.fresh_since
    if since is None:
        return plan
    key = hashlib.sha256(f"{plan.key}\n{item.builder.id}\n{since}".encode()).hexdigest()
    return replace(plan, key=key)


async def compile_layer(application: Application, item: WorkItem) -> None:
    """Byte-compile the layer in the background, for sandboxes started from then on. Harmless when repeated."""
    # No variable holds the bundle: it would stay in memory during the compilation.
    plan, key = _plan(application, item, await bundles.fetch_root(application, item.version)), item.version.layer_key
    if plan is not None and plan.compile_step is not None and key:
        # A fallback has another key than the first plan, and the same later step.
        await application.engine.layers.compile_layer(key, plan.compile_step)


def _plan(application: Application, item: WorkItem, bundle: Bundle) -> LayerPlan | None:
    """Return the plan of the layer; ``bundle`` has the files of the version's root."""
    scripts = item.version.settings.install_scripts
    base, tenant = application.engine.layers.base_id, item.builder.tenant_id
    dev = bool(item.version.settings.build)
    return application.installer.plan(bundle, base, tenant, install_scripts=scripts, dev=dev)


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


class BuildLog:
    """Collects lines and writes them to the store from time to time, so that a follower sees progress."""

    def __init__(self, application: Application, item: WorkItem, masker: Masker | None = None) -> None:
        self._application = application
        self._subject = item
        self._masker = masker or Masker(())
        self._lines: list[LogLine] = []
        self._taken = 0

    async def __aenter__(self) -> BuildLog:
        self._flusher = asyncio.create_task(self._flush_often())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._flusher.cancel()
        await asyncio.gather(self._flusher, return_exceptions=True)
        await self._flush()

    def line(self, text: str) -> None:
        """Take one line; its time is now. What is too much is left out, and a line says so."""
        self._taken += 1
        if self._taken > MAX_LINES:
            return
        if self._taken == MAX_LINES:
            text = "… what else it wrote is left out."
        text = self._masker.text(text)
        shown = text if len(text) <= MAX_CHARACTERS else f"{text[: MAX_CHARACTERS - 1]}…"
        self._lines.append(LogLine(self._application.clock.now(), LogStream.BUILD, shown))

    async def _flush_often(self) -> None:
        while True:
            await asyncio.sleep(FLUSH_INTERVAL)
            await self._flush()

    async def _flush(self) -> None:
        lines, self._lines = self._lines, []
        if lines:
            await self._application.store.write(lambda uow: self._write(uow, lines))
            self._application.signals.change(self._subject.builder.id)

    def _write(self, uow: UnitOfWork, lines: Sequence[LogLine]) -> None:
        uow.build_logs.add(self._subject.builder.id, self._subject.version.number, lines)
