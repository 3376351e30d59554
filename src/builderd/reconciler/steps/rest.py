"""Freeze and thaw: put an idle app's sandbox to rest, and wake it.

Recorded: a freeze, and only memory and disk are billed from then on; a thaw, and running time is billed again.
Left when killed: a sandbox that is frozen or thawed already; the next record catches up with it.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from builderd.application import Application
from builderd.builders.model import Cause, Desired
from builderd.events.model import SYSTEM, Event
from builderd.money import service as spending
from builderd.money.model import Billing
from builderd.reconciler import record as transitions
from builderd.reconciler.observe import WorkItem
from builderd.reconciler.record import Result, Transition
from builderd.sandboxes.model import Sandbox, SandboxReport, SandboxState


async def freeze(app: Application, item: WorkItem, sandbox: Sandbox, before: SandboxReport | None) -> Result:
    if await is_visited(app, item):
        return abort_freeze(item)
    report = await app.engine.sandboxes.freeze(sandbox.id)
    if report.state is not SandboxState.FROZEN:
        return Result()  # the next look says what became of it

    def record(transition: Transition) -> None:
        caught_up(transition, sandbox, before)
        _frozen(transition, sandbox, report.frozen_at or transition.now)

    return Result(record)


async def thaw(app: Application, sandbox: Sandbox, before: SandboxReport | None) -> Result:
    report = await app.engine.sandboxes.thaw(sandbox.id)
    if not report.alive:
        return Result()  # the next look says what became of it

    def record(transition: Transition) -> None:
        caught_up(transition, sandbox, before)
        _thawed(transition, sandbox, report.thawed_at or transition.now)

    return Result(record)


async def is_visited(app: Application, item: WorkItem) -> bool:
    """Return whether the preview has open connections, let in before it began to pause requests."""
    activity = (await app.previews.activity()).get(item.builder.host)
    return activity is not None and activity.open_connections > 0


def abort_freeze(item: WorkItem) -> Result:
    """Abort going to sleep: the builder is in use."""

    def record(transition: Transition) -> None:
        same = transition.builder.stop_kind is item.builder.stop_kind
        if same and transitions.same_generation(transition.builder, item.builder):
            builder = transition.builder
            transition.uow.builders.save(
                replace(
                    builder,
                    desired=Desired.RUNNING,
                    cause=replace(builder.cause, reason="visited"),
                    asleep_since=None,
                    stop_kind=None,
                    last_active_at=transition.now,
                )
            )

    return Result(record)


def caught_up(transition: Transition, sandbox: Sandbox, report: SandboxReport | None) -> None:
    """Record a freeze and a thaw that the engine made just before the service was killed: at most one of each.

    ``report`` was read before the changes that are recorded next.
    """
    if report is None or report.frozen_at is None:
        return
    builder = replace(transition.builder, cause=Cause(SYSTEM, "recorded after an interruption"))
    by = replace(transition, builder=builder)
    # The sandbox's state decides which came last when both have the same time.
    stands = report.sleeps
    paid = transition.uow.ledger.current(builder.id)
    if paid is not None and paid.billing is Billing.RUNNING and (stands or report.frozen_at > paid.start):
        _frozen(by, sandbox, report.frozen_at)
    if not stands and report.thawed_at is not None and report.thawed_at >= report.frozen_at:
        _thawed(by, sandbox, report.thawed_at)


def _frozen(transition: Transition, sandbox: Sandbox, at: datetime) -> None:
    """Record a freeze: from then on only memory and disk are billed."""
    _turn(transition, sandbox, "sandbox.frozen", Billing.RUNNING, Billing.FROZEN, at)


def _thawed(transition: Transition, sandbox: Sandbox, at: datetime) -> None:
    """Record a thaw: from then on running time is billed again."""
    _turn(transition, sandbox, "sandbox.thawed", Billing.FROZEN, Billing.RUNNING, at)


def _turn(transition: Transition, sandbox: Sandbox, kind: str, before: Billing, after: Billing, at: datetime) -> None:
    """Record the event only if the ledger changed too: a repeated step records none."""
    uow, builder = transition.uow, transition.builder
    if spending.turn(uow, transition.prices, builder, before, after, at):
        by, details = builder.cause, {"sandbox": sandbox.id, "version": sandbox.version}
        uow.events.add(Event(builder.tenant_id, builder.id, at, kind, by.actor, by.reason, details))
