"""Outcomes: wait until what was wanted of a builder has come about, and follow the stages on the way."""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial
from typing import NamedTuple

from builderd.domain.builders import Builder, Desired, Status
from builderd.domain.errors import (
    BuilderdError,
    EngineUnavailable,
    InstallFailed,
    NoCapacity,
    NotFound,
    QaFailed,
    StartFailed,
)
from builderd.domain.events import Event
from builderd.domain.ids import BuilderId
from builderd.ports.store import UnitOfWork
from builderd.services.application import Application

#: How long to trust that a change of this process is signalled before looking again, in seconds.
LOOK_INTERVAL = 0.5

FAILURES: dict[str, type[BuilderdError]] = {
    error.code: error for error in (InstallFailed, StartFailed, QaFailed, NoCapacity, EngineUnavailable)
}


async def wait(application: Application, builder_id: BuilderId, run: int) -> Builder:
    """The builder once that run has an outcome, or was overtaken by another wish that has one.

    Raises the error of the stage that failed, with ``data.uuid``.
    """
    builder = await reached(application, builder_id, run)
    failure = failure_of(builder)
    if failure is not None and builder.settled_run >= run:
        raise failure
    return builder


async def reached(application: Application, builder_id: BuilderId, run: int) -> Builder:
    """The same, and a failure is a builder like another: for those who wanted something else than a run."""
    while True:
        seen = application.signals.count(builder_id)
        builder = await application.store.read(lambda uow: _get(uow, builder_id))
        if _is_over(builder, run):
            return builder
        await application.signals.wait(builder_id, seen, LOOK_INTERVAL)


def failure_of(builder: Builder) -> BuilderdError | None:
    """The stage error that put the builder into ``failed``, if one did."""
    if builder.status is not Status.FAILED or builder.failure_code is None:
        return None
    return FAILURES[builder.failure_code](builder.status_reason, data={"uuid": builder.id})


async def stages(application: Application, builder_id: BuilderId, run: int) -> AsyncIterator[Event]:
    """The events of the stages, as they are recorded, until the run has its outcome."""
    after = 0
    while True:
        seen = application.signals.count(builder_id)
        look = await application.store.read(partial(_look, builder_id=builder_id, after=after))
        for event in look.events:
            after = event.id
            if event.type.startswith("stage."):
                yield event
        if _is_over(look.builder, run):
            return
        await application.signals.wait(builder_id, seen, LOOK_INTERVAL)


class _Look(NamedTuple):
    builder: Builder
    events: tuple[Event, ...]


def _look(uow: UnitOfWork, builder_id: BuilderId, after: int) -> _Look:
    return _Look(_get(uow, builder_id), tuple(uow.events.of_builder(builder_id, after=after)))


def _get(uow: UnitOfWork, builder_id: BuilderId) -> Builder:
    builder = uow.builders.get(builder_id)
    if builder is None:
        raise NotFound("The builder is gone.")
    return builder


def _is_over(builder: Builder, run: int) -> bool:
    if builder.desired is Desired.RUNNING:
        return builder.settled_run >= run
    return builder.settled
