"""The ledger: what a builder pays for, from when on. Segments follow one another without a gap or an overlap.

Trials have segments of their own beside them.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from builderd.domain.builders import Builder
from builderd.domain.prices import Billing, Prices, Segment
from builderd.domain.resources import Resources
from builderd.ports.store import UnitOfWork


def bill(
    uow: UnitOfWork, prices: Prices, builder: Builder, resources: Resources, billing: Billing, at: datetime
) -> None:
    """Begin a segment where the present one ends; nothing changes when that is of this state and rate already.

    Never before the present one began, whatever clock ``at`` is from. The builder must be locked.
    """
    rate = prices.hourly_rate(resources, billing)
    current = uow.ledger.current(builder.id)
    if current is not None and (current.billing, current.hourly_rate) == (billing, rate):
        return
    start = max(at, current.start) if current else at
    uow.ledger.close(builder.id, start)
    uow.ledger.open(Segment(builder.tenant_id, builder.id, billing, start, None, rate))
    # When a cap will be reached depends on the rates of all: it has to be computed again.
    uow.tenants.make_spending_due(builder.tenant_id, at)


def freeze(uow: UnitOfWork, prices: Prices, builder: Builder, at: datetime) -> None:
    """From ``at`` on it is paid as frozen; nothing changes unless it is paid as running."""
    _turn(uow, prices, builder, Billing.RUNNING, Billing.FROZEN, at)


def thaw(uow: UnitOfWork, prices: Prices, builder: Builder, at: datetime) -> None:
    """From ``at`` on it is paid as running again; nothing changes unless it is paid as frozen."""
    _turn(uow, prices, builder, Billing.FROZEN, Billing.RUNNING, at)


def bill_trial(
    uow: UnitOfWork,
    prices: Prices,
    builder: Builder,
    resources: Resources,
    start: datetime,
    end: datetime,
    *,
    longest: timedelta,
) -> None:
    """Charge a trial of a version with these resources, which has ended. To be called once for each trial.

    At most ``longest`` is charged: the clock may have been set forward meanwhile, and nobody pays for that.
    """
    rate = prices.hourly_rate(resources, Billing.TRIAL)
    end = min(max(end, start), start + longest)
    uow.ledger.open(Segment(builder.tenant_id, builder.id, Billing.TRIAL, start, end, rate))
    uow.tenants.make_spending_due(builder.tenant_id, end)


def _turn(uow: UnitOfWork, prices: Prices, builder: Builder, before: Billing, after: Billing, at: datetime) -> None:
    current = uow.ledger.current(builder.id)
    if current is None or current.billing is not before:
        return
    version = uow.versions.get(builder.id, builder.version)
    assert version is not None, "a builder's current version is always stored"
    bill(uow, prices, builder, version.settings.resources, after, at)
