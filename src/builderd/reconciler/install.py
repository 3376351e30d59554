"""The install stage: plan the version's layer, make it, and keep what the installer wrote."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace

from builderd.domain.errors import InstallFailed
from builderd.domain.layers import BuildOutcome, LayerPlan
from builderd.domain.logs import LogLine, LogStream
from builderd.domain.versions import NO_LAYER
from builderd.ports.store import UnitOfWork
from builderd.reconciler.look import Subject
from builderd.services.application import Application

#: How often the lines of a build are written down while it goes on, in seconds.
FLUSH_INTERVAL = 0.3


@dataclass(frozen=True, slots=True)
class Installed:
    """``layer_key`` as a version keeps it. ``reused`` when nothing had to be made."""

    layer_key: str
    seconds: float
    reused: bool


async def install(application: Application, subject: Subject) -> Installed:
    """Make the layer, or find it made. Raises ``InstallFailed`` with the resolver's own message."""
    bundle = await application.bundles.get(subject.version.bundle_hash)
    tenant = subject.builder.tenant_id
    plan = application.installer.plan(bundle, application.engine.base_id, tenant)
    if plan is None:
        return Installed(NO_LAYER, 0.0, reused=True)
    async with BuildLog(application, subject) as log:
        outcome = await application.engine.build_layer(plan, log.line)
        fallback = None if outcome.ok else application.installer.fallback(plan, outcome.output, tenant)
        if fallback is not None:
            log.line("No wheels for everything: building from source in a sandbox of its own.")
            plan, outcome = fallback, await application.engine.build_layer(fallback, log.line)
    if not outcome.ok:
        raise InstallFailed(_explain(application, outcome))
    return Installed(plan.key, outcome.seconds, outcome.reused)


async def polish(application: Application, subject: Subject) -> None:
    """Run the plan's later step, for sandboxes started from then on. Harmless when repeated."""
    plan = await _plan_of(application, subject)
    if plan is not None and plan.polish is not None:
        await application.engine.polish_layer(plan.key, plan.polish)


async def _plan_of(application: Application, subject: Subject) -> LayerPlan | None:
    """The plan whose layer the version uses: the installer's first, or its fallback."""
    bundle = await application.bundles.get(subject.version.bundle_hash)
    plan = application.installer.plan(bundle, application.engine.base_id, subject.builder.tenant_id)
    if plan is None or subject.version.layer_key is None:
        return None
    return plan if plan.key == subject.version.layer_key else replace(plan, key=subject.version.layer_key)


def _explain(application: Application, outcome: BuildOutcome) -> str:
    if outcome.out_of_memory:
        return "The installer was killed for want of memory: ask for less, or for packages that come as wheels."
    if outcome.timed_out:
        return "The installer did not finish in time."
    return application.installer.explain(outcome.output)


class BuildLog:
    """Collects lines and writes them to the store from time to time, so that a follower sees progress."""

    def __init__(self, application: Application, subject: Subject) -> None:
        self._application = application
        self._subject = subject
        self._lines: list[LogLine] = []

    async def __aenter__(self) -> BuildLog:
        self._flusher = asyncio.create_task(self._flush_often())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._flusher.cancel()
        await asyncio.gather(self._flusher, return_exceptions=True)
        await self._flush()

    def line(self, text: str) -> None:
        """Take one line; its time is now."""
        self._lines.append(LogLine(self._application.clock.now(), LogStream.BUILD, text))

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
