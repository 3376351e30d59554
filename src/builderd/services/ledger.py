"""The ledger: the segments by which a builder is billed, without gap or overlap.

Trials have segments of their own beside them.
"""

from __future__ import annotations

from datetime import datetime

from builderd.domain.builders import Builder
from builderd.domain.prices import Billing, Prices, Segment
from builderd.domain.resources import Resources
from builderd.store import UnitOfWork


def bill(
    uow: UnitOfWork, prices: Prices, builder: Builder, resources: Resources, billing: Billing, at: datetime
) -> None:
    """Begin a segment at the end of the present one; do nothing if the present one has this state and rate.

    The segment begins no earlier than the present one, even if ``at`` is from another clock. The builder must be
    locked.
    """
    rate = prices.hourly_rate(resources, billing)
    current = uow.ledger.current(builder.id)
    if current is not None and (current.billing, current.hourly_rate) == (billing, rate):
        return
    start = max(at, current.start) if current else at
    uow.ledger.close(builder.id, start)
    uow.ledger.open(Segment(builder.tenant_id, builder.id, billing, start, None, rate))
    # The time at which a cap will be reached depends on all rates: compute it again.
    uow.tenants.make_spending_due(builder.tenant_id, at)


def freeze(uow: UnitOfWork, prices: Prices, builder: Builder, at: datetime) -> None:
    """Bill the builder as frozen from ``at`` on; do nothing unless it is billed as running."""
    _turn(uow, prices, builder, Billing.RUNNING, Billing.FROZEN, at)


def thaw(uow: UnitOfWork, prices: Prices, builder: Builder, at: datetime) -> None:
    """Bill the builder as running from ``at`` on; do nothing unless it is billed as frozen."""
    _turn(uow, prices, builder, Billing.FROZEN, Billing.RUNNING, at)


def bill_trial(
    uow: UnitOfWork,
    prices: Prices,
    builder: Builder,
    resources: Resources,
    start: datetime,
    end: datetime,
) -> None:
    """Bill a finished trial, build or QA report of a version with these resources. Call it once for each of them."""
    rate = prices.hourly_rate(resources, Billing.TRIAL)
    uow.ledger.open(Segment(builder.tenant_id, builder.id, Billing.TRIAL, start, end, rate))
    uow.tenants.make_spending_due(builder.tenant_id, end)


def _turn(uow: UnitOfWork, prices: Prices, builder: Builder, before: Billing, after: Billing, at: datetime) -> None:
    current = uow.ledger.current(builder.id)
    if current is None or current.billing is not before:
        return
    version = uow.versions.get(builder.id, builder.version)
    assert version is not None, "a builder's current version is always stored"
    bill(uow, prices, builder, version.settings.resources, after, at)
