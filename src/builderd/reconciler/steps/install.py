"""The install and build stages: plan a version's layers, make them, keep what their commands print."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
from collections import defaultdict
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import timedelta
from typing import TypeVar

from builderd.application import Application
from builderd.builders.model import Builder
from builderd.code import service as bundles
from builderd.code.model import Bundle, folder_of
from builderd.core.errors import BuildFailed, InstallFailed, NotFound, is_by_machine
from builderd.core.ids import TenantId, new_id
from builderd.core.loops import every
from builderd.credentials import service as credentials
from builderd.credentials.model import Masker
from builderd.database.unit_of_work import UnitOfWork
from builderd.dependencies.hints import build_hint, install_hint, node_hint, pin_notes, unread_notes
from builderd.dependencies.model import (
    APP,
    BUILD_RESOURCES,
    NODE_MODULES,
    AppBuild,
    BuildOutcome,
    BuildStep,
    Cache,
    LayerPlan,
    MadeLayer,
)
from builderd.money import admission
from builderd.money import service as spending
from builderd.money.model import OpenBuild
from builderd.reconciler.failures import SHOWN_CHARACTERS, SHOWN_LINES
from builderd.reconciler.observe import WorkItem
from builderd.sandboxes.model import LogLine, LogStream
from builderd.versions.model import NO_LAYER, ignored_names

#: How often the lines of a build are written down while it continues, in seconds.
FLUSH_INTERVAL = 0.3
#: What is kept of one build's lines, and of one line: what a build prints is the user's own, and could be endless.
MAX_LINES, MAX_CHARACTERS = 5_000, 1_000
#: Layers that are made at the same time, and those of one tenant among them.
MAX_BUILDS, MAX_OF_TENANT = 8, 2


class LayerInstalls:
    """Builds layers, a few at once, with a limit for each tenant so that it does not delay others."""

    def __init__(self, application: Application) -> None:
        self._app = application
        self._charges = BuildCharges(application)
        self._concurrency = asyncio.Semaphore(MAX_BUILDS)
        self._tenant_concurrency: defaultdict[TenantId, asyncio.Semaphore] = defaultdict(
            lambda: asyncio.Semaphore(MAX_OF_TENANT)
        )

    async def build(self, item: WorkItem) -> MadeLayer:
        """Run the version's build command, or find its result. Raises ``BuildFailed`` with the command's last lines."""
        tenant, key = item.builder.tenant_id, self._plan_build(item, await bundles.fetch(self._app, item.version)).key
        try:
            if await self._app.engine.layers.has_layer(key):
                await admission.check_reuse(self._app, tenant, key)
                return MadeLayer(key, 0.0, reused=True)
            async with self._tenant_concurrency[tenant], self._concurrency, BuildLog(self._app, item) as log:
                bundle = await bundles.fetch(self._app, item.version)  # anew: what waits has no bundle in memory
                bounded = await admission.limit_plan(self._app, tenant, self._plan_build(item, bundle))
                outcome = await self._run(item.builder, bounded, log)
        except InstallFailed as refusal:  # the limit of all layers
            raise BuildFailed(refusal.message) from refusal
        if not outcome.ok:
            timeout = self._app.limits.build_timeout
            raise BuildFailed(await asyncio.to_thread(explain_build, item, bundle, outcome, timeout))
        return MadeLayer(key, outcome.seconds, outcome.reused)

    def _plan_build(self, item: WorkItem, bundle: Bundle) -> LayerPlan:
        return _own(plan_build(item, bundle, self._app.engine.layers.base_id, self._app.limits.build_timeout), item)

    async def install(self, item: WorkItem) -> MadeLayer:
        """Make the layer, or find it made. Raises ``InstallFailed`` with the installer's words."""
        files, tenant = await bundles.fetch_root(self._app, item.version), item.builder.tenant_id
        plan = _plan(self._app, item, files)
        await self._name_unread(item, files)
        del files  # neither while this waits nor while the layer is built
        if plan is None:
            return MadeLayer(NO_LAYER, 0.0, reused=True)
        complete, masker = await self._completion(item)
        for known in (plan, self._app.installer.from_source(plan, tenant)):
            if known is not None and await self._app.engine.layers.has_layer(key := complete(known).key):
                await admission.check_reuse(self._app, tenant, key)
                return MadeLayer(key, 0.0, reused=True)
        async with self._tenant_concurrency[tenant], self._concurrency, BuildLog(self._app, item, masker) as log:
            bounded = await admission.limit_plan(self._app, tenant, replace(plan, tenant=tenant))
            made, outcome, seconds = await self._build(item, bounded, complete, log)
        if not outcome.ok:
            bundle = await bundles.fetch_root(self._app, item.version)
            message = await asyncio.to_thread(_explain, self._app, made, outcome, bundle)
            raise InstallFailed(masker.text(message))
        return MadeLayer(made.key, seconds, outcome.reused)

    async def _completion(self, item: WorkItem) -> tuple[Callable[[LayerPlan], LayerPlan], Masker]:
        """Return what completes an installer's plan for this version: its private indexes, and layers of its own.

        Raises ``InstallFailed`` for a credential that is gone.
        """
        tenant, names = item.builder.tenant_id, item.version.settings.credentials
        if not names:
            return lambda plan: _own(plan, item), Masker(())
        try:
            sources, masker = await self._app.store.read(
                lambda uow: credentials.package_sources(uow, self._app.vault, tenant, names)
            )
        except NotFound as lack:
            raise InstallFailed(lack.message) from lack
        if sources is None:
            return lambda plan: _own(plan, item), masker
        return lambda plan: _own(self._app.installer.from_sources(plan, sources, tenant), item), masker

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

    async def _build(
        self, item: WorkItem, plan: LayerPlan, complete: Callable[[LayerPlan], LayerPlan], log: BuildLog
    ) -> tuple[LayerPlan, BuildOutcome, float]:
        """Make the layer, from source where wheels are lacking; return the last plan, its outcome, and all seconds."""
        made = complete(plan)
        outcome = await self._run(item.builder, made, log)
        if outcome.ok or not (source := self._app.installer.fallback(plan, outcome.output, item.builder.tenant_id)):
            return made, outcome, outcome.seconds
        log.line("No wheels for everything: building from source in a sandbox of its own.")
        source = replace(source, tenant=plan.tenant, limit_bytes=plan.limit_bytes, quota_bytes=plan.quota_bytes)
        made, before = complete(source), outcome.seconds
        outcome = await self._run(item.builder, made, log)
        return made, outcome, before + outcome.seconds

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
        async def flush_often() -> None:
            while True:
                await asyncio.sleep(FLUSH_INTERVAL)
                await self._flush()

        self._flusher = asyncio.create_task(flush_often())
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

    async def _flush(self) -> None:
        lines, self._lines = self._lines, []
        if lines:
            builder, number = self._subject.builder.id, self._subject.version.number
            await self._application.store.write(lambda uow: uow.build_logs.add(builder, number, lines))
            self._application.signals.change(builder)


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


def plan_build(item: WorkItem, bundle: Bundle, base_id: str, timeout_seconds: float) -> LayerPlan:
    """Return the plan of the version's build. Its result is the tenant's alone: the command is the tenant's code."""
    settings, tenant = item.version.settings, item.builder.tenant_id
    layer = item.version.layer_key or None
    decisive = [RECIPE, base_id, tenant, bundle.hash, layer, settings.build, sorted(settings.variables.items())]
    if settings.root:
        decisive.append(settings.root)
    step = BuildStep(
        title=f"Building: {settings.build}",
        argv=("/bin/sh", "-ec", settings.build),
        network=True,
        cache=Cache.NONE,
        env={**ENVIRONMENT, "HOME": HOME, **settings.variables},
        timeout_seconds=max(1, round(timeout_seconds)),
    )
    return LayerPlan(
        key=hashlib.sha256(f"app build\n{json.dumps(decisive)}".encode()).hexdigest(),
        inputs={},
        steps=(step,),
        runs_foreign_code=True,
        tenant=tenant,
        app=AppBuild(bundle, layer, settings.root),
    )


def explain_build(item: WorkItem, bundle: Bundle, outcome: BuildOutcome, timeout_seconds: float) -> str:
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


log = logging.getLogger(__name__)

#: Seconds between two records that a build still runs: what a kill of the service leaves uncharged at most.
SEEN_INTERVAL = 5.0
#: Seconds between two tries to write the end of a build.
RETRY_INTERVAL = 5.0

T = TypeVar("T")


class BuildCharges:
    """Charge builds at their ends; what the store does not take then is written in the background, once it does.

    A build is what runs a tenant's or a stranger's code beside the app: a version's build command, an install that may
    run code of packages, a QA report on a copy of the app. It is recorded before it starts, so that a kill of the
    service does not make it free.
    """

    def __init__(self, application: Application) -> None:
        self._app = application
        self._unwritten: set[asyncio.Task[None]] = set()

    async def charged(self, builder: Builder, building: Callable[[], Awaitable[T]]) -> T:
        """Wait for the build and charge its time, also if it fails or is cancelled, but not if the machine fails."""
        app, now = self._app, self._app.clock.now()
        build = OpenBuild(new_id(), builder.tenant_id, builder.id, now, now)
        seeing: asyncio.Task[None] | None = None

        async def see() -> None:
            seen_at = app.clock.now()
            await app.store.write(lambda uow: uow.open_builds.seen(build.id, seen_at))

        try:
            await app.store.write(lambda uow: uow.open_builds.add(build))
            seeing = asyncio.create_task(every(SEEN_INTERVAL, see, event="record of a build", wait_first=True))
            outcome = await building()
        except BaseException as error:
            await asyncio.shield(self._end(build, is_paid=not is_by_machine(error)))
            raise
        finally:
            if seeing is not None:
                seeing.cancel()
        await self._end(build, is_paid=not (isinstance(outcome, BuildOutcome) and outcome.reused))
        return outcome

    async def _end(self, build: OpenBuild, *, is_paid: bool) -> None:
        """Record the end. A failure of the store never hides how the build ended."""
        ended = replace(build, seen_at=max(self._app.clock.now(), build.started_at))
        if not await self._try_write(ended, is_paid=is_paid):
            retry = asyncio.create_task(self._retry(ended, is_paid=is_paid))
            self._unwritten.add(retry)
            retry.add_done_callback(self._unwritten.discard)

    async def _retry(self, build: OpenBuild, *, is_paid: bool) -> None:
        while True:
            await asyncio.sleep(RETRY_INTERVAL)
            if await self._try_write(build, is_paid=is_paid):
                return

    async def _try_write(self, build: OpenBuild, *, is_paid: bool) -> bool:
        try:
            await self._app.store.write(lambda uow: _remove(uow, self._app, build, is_paid=is_paid))
        except Exception:
            log.warning(
                "record of a build's end failed retry_seconds=%g build=%s", RETRY_INTERVAL, build.id, exc_info=True
            )
            return False
        return True


async def close_cut_builds(app: Application) -> None:
    """Charge the builds of an earlier process of this service whose end the store does not know.

    Each is charged up to when it was last seen.
    """
    longest = timedelta(seconds=app.limits.build_timeout)

    def close(uow: UnitOfWork) -> int:
        cut = uow.open_builds.all()
        for build in cut:
            # The clock may have been set forward in between.
            end = min(max(build.seen_at, build.started_at), build.started_at + longest)
            _remove(uow, app, replace(build, seen_at=end), is_paid=True)
        return len(cut)

    if count := await app.store.write(close):
        log.info("builds of the service before were closed builds=%d", count)


def _remove(uow: UnitOfWork, app: Application, build: OpenBuild, *, is_paid: bool) -> None:
    builder = uow.builders.get(build.builder_id)
    if uow.open_builds.remove(build.id) and is_paid and builder is not None:
        spending.bill_trial(uow, app.prices, builder, BUILD_RESOURCES, build.started_at, build.seen_at)
