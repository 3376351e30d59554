"""Records: what the reconciler writes down, each in one transaction that applies only while its claim holds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, NamedTuple

from builderd.domain.builders import Builder, Desired
from builderd.domain.events import SYSTEM, Event
from builderd.domain.ids import BuilderId
from builderd.domain.layers import Built, Installed
from builderd.domain.logs import LogLine, LogStream
from builderd.domain.prices import Prices
from builderd.domain.versions import NO_LAYER, Version
from builderd.reconciler.core.observe import StoredState, read
from builderd.services.application import Application
from builderd.store import UnitOfWork

REUSED = "The requirements are as they were before: their layer is reused."
BUILT_BEFORE = "The same files were built before: that result is used again."
#: Written inside a transaction, on the builder as it is then.
Record = Callable[[UnitOfWork, Builder], None]


@dataclass(frozen=True, slots=True)
class Transition:
    """Context of a record: its unit of work, the builder as it is there, the prices, and the time."""

    uow: UnitOfWork
    builder: Builder
    prices: Prices
    now: datetime


class Recorded(NamedTuple):
    """Stored state after a record, and whether the claim was released with it."""

    state: StoredState | None
    released: bool


class ClaimLost(Exception):
    """Raised when another control plane holds the builder: stop working on it."""


async def apply(application: Application, builder_id: BuilderId, record: Record) -> Recorded:
    """Apply the record to the locked builder; release the claim with it where nothing seems left to do.

    Who finds a step all the same takes it again. Raises ``ClaimLost``.
    """

    def guarded(uow: UnitOfWork) -> Recorded:
        builder = uow.builders.get_held(builder_id, application.instance, application.clock.now())
        if builder is None:
            raise ClaimLost
        record(uow, builder)
        state = read(uow, builder_id)
        rests = state is not None and _rests(state)
        if rests:
            uow.builders.release(builder_id, application.instance, None)
        return Recorded(state, rests)

    return await application.store.write(guarded)


def _rests(state: StoredState) -> bool:
    """Return whether a builder probably needs no further step, as long as nothing else is wanted.

    An app that was up stays settled while it is started again after a crash.
    """
    builder, sandbox = state.item.builder, state.sandbox
    if not builder.settled or builder.candidate or builder.handover or builder.spare_disks or state.trial:
        return False
    if builder.desired is not Desired.RUNNING:
        return sandbox is None
    if sandbox is None or sandbox.started_at is None:
        return False
    return sandbox.listening_at is not None or not builder.job_type.stays_up


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


def stage_started(uow: UnitOfWork, builder: Builder, stage: str, now: datetime) -> None:
    add_event(uow, builder, "stage.started", now, reason=stage, details={"stage": stage})


def installed(transition: Transition, version: Version, layer: Installed) -> None:
    """The version's layer is there. The build log says so also where nothing had to be built."""
    uow, builder, now = transition.uow, transition.builder, transition.now
    uow.versions.save(replace(as_stored(uow, version), layer_key=layer.layer_key))
    note = "reused" if layer.reused else "made"
    if layer.layer_key == NO_LAYER:
        note = "nothing to install"
    elif layer.reused:
        uow.build_logs.add(builder.id, version.number, [LogLine(now, LogStream.BUILD, REUSED)])
    stage_finished(transition, "install", seconds=layer.seconds, ok=True, note=note, reused=layer.reused)


def built(transition: Transition, version: Version, build: Built) -> None:
    """The version's files are built. The build log says so also where that was done before."""
    if build.reused:
        line = LogLine(transition.now, LogStream.BUILD, BUILT_BEFORE)
        transition.uow.build_logs.add(transition.builder.id, version.number, [line])
    note = "reused" if build.reused else "made"
    stage_finished(transition, "build", seconds=build.seconds, ok=True, note=note, reused=build.reused)


def stage_finished(
    transition: Transition, stage: str, *, seconds: float, ok: bool, note: str = "", **more: bool
) -> None:
    uow, builder, now = transition.uow, transition.builder, transition.now
    details = {"stage": stage, "seconds": round(seconds, 3), "ok": ok, **more}
    add_event(uow, builder, "stage.finished", now, reason=note or stage, details=details)


def add_event(
    uow: UnitOfWork, builder: Builder, kind: str, now: datetime, *, reason: str, details: dict[str, Any]
) -> None:
    """Add an event of the builder, by the system."""
    uow.events.add(Event(builder.tenant_id, builder.id, now, kind, SYSTEM, reason, details))
