"""Records: what the reconciler writes down, each in one transaction that applies only while its claim holds."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from builderd.domain.builders import Builder
from builderd.domain.events import SYSTEM, Event
from builderd.domain.ids import BuilderId
from builderd.domain.layers import Built, Installed
from builderd.domain.prices import Prices
from builderd.domain.sandboxes import LogLine, LogStream
from builderd.domain.versions import NO_LAYER, Version
from builderd.reconciler.core.observe import StoredState, read
from builderd.services.application import Application
from builderd.store import UnitOfWork

REUSED = "The requirements are as they were before: their layer is reused."
BUILT_BEFORE = "The same files were built before: that result is used again."


@dataclass(frozen=True, slots=True)
class Transition:
    """Context of a record: its unit of work, the builder as it is there, the prices, and the time."""

    uow: UnitOfWork
    builder: Builder
    prices: Prices
    now: datetime


#: Writes what a step did, inside a transaction, on the builder as it is then.
Record = Callable[[Transition], None]


async def nothing() -> None:
    """Do nothing: the default of ``Result.afterwards``."""


@dataclass(frozen=True, slots=True)
class Result:
    """Result of a step: ``record`` is written in one transaction, then ``afterwards`` tidies up.

    A crash may leave ``afterwards`` to the next start. ``quiet``: calls that wait for the builder are not woken.
    """

    record: Record | None = None
    afterwards: Callable[[], Awaitable[None]] = nothing
    quiet: bool = False


class ClaimLost(Exception):
    """Raised when another control plane holds the builder: stop working on it."""


async def apply(application: Application, builder_id: BuilderId, record: Record) -> StoredState | None:
    """Apply the record to the locked builder; return the state stored afterwards. Raises ``ClaimLost``."""

    def guarded(uow: UnitOfWork) -> StoredState | None:
        now = application.clock.now()
        builder = uow.builders.get_held(builder_id, application.instance, now)
        if builder is None:
            raise ClaimLost
        record(Transition(uow, builder, application.prices, now))
        return read(uow, builder_id)

    return await application.store.write(guarded)


def same_generation(builder: Builder, looked_at: Builder) -> bool:
    """Return whether the desired state and run are those the step was chosen for; if not, discard its outcome."""
    return builder.desired is looked_at.desired and builder.generation == looked_at.generation


def same_candidate(builder: Builder, looked_at: Builder) -> bool:
    """Return whether the candidate and the handover are unchanged since the step was chosen."""
    return builder.candidate_version == looked_at.candidate_version and builder.handover is looked_at.handover


def still_wanted(builder: Builder, looked_at: Builder, version: Version) -> bool:
    """Return whether a step's outcome for this version, the one to run or the candidate, still applies."""
    if version.number == looked_at.to_run[0]:
        return same_generation(builder, looked_at)
    return same_candidate(builder, looked_at)


def as_stored(uow: UnitOfWork, version: Version) -> Version:
    """Read the version again: a gate may have judged it meanwhile."""
    found = uow.versions.get(version.builder_id, version.number)
    assert found is not None, "a builder's versions are always stored"
    return found


def stage_started(transition: Transition, stage: str) -> None:
    add_event(transition, "stage.started", reason=stage, details={"stage": stage})


def installed(transition: Transition, version: Version, layer: Installed) -> None:
    """The version's layer is there. The build log says so also where nothing had to be built."""
    uow, now = transition.uow, transition.now
    uow.versions.save(replace(as_stored(uow, version), layer_key=layer.layer_key))
    note = "reused" if layer.reused else "made"
    if layer.layer_key == NO_LAYER:
        note = "nothing to install"
    elif layer.reused:
        uow.build_logs.add(version.builder_id, version.number, [LogLine(now, LogStream.BUILD, REUSED)])
    stage_finished(transition, "install", seconds=layer.seconds, ok=True, note=note, reused=layer.reused)


def built(transition: Transition, version: Version, build: Built) -> None:
    """The version's files are built. The build log says so also where that was done before."""
    uow = transition.uow
    uow.versions.save(replace(as_stored(uow, version), build_key=build.build_key))
    if build.reused:
        line = LogLine(transition.now, LogStream.BUILD, BUILT_BEFORE)
        uow.build_logs.add(version.builder_id, version.number, [line])
    note = "reused" if build.reused else "made"
    stage_finished(transition, "build", seconds=build.seconds, ok=True, note=note, reused=build.reused)


def stage_finished(
    transition: Transition, stage: str, *, seconds: float, ok: bool, note: str = "", **more: bool
) -> None:
    details = {"stage": stage, "seconds": round(seconds, 3), "ok": ok, **more}
    add_event(transition, "stage.finished", reason=note or stage, details=details)


def add_event(
    transition: Transition, kind: str, *, reason: str, details: dict[str, Any], at: datetime | None = None
) -> None:
    """Add an event of the builder, by the system, at the record's time or ``at``."""
    builder, now = transition.builder, at or transition.now
    transition.uow.events.add(Event(builder.tenant_id, builder.id, now, kind, SYSTEM, reason, details))
