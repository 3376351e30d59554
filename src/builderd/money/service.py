"""Spending: the ledger's segments, and the costs of a tenant's builders, deleted ones included."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Generic, TypeVar

from builderd.application import Application
from builderd.builders.lists import CostedBuilder, ListedCost
from builderd.builders.model import Builder
from builderd.core.ids import BuilderId, TenantId
from builderd.core.resources import Resources
from builderd.database.unit_of_work import UnitOfWork
from builderd.money.model import (
    Billing,
    Cost,
    Prices,
    Segment,
    Sum,
    cents,
    days_between,
    rate_digits,
    span_of_days,
    total,
)

T = TypeVar("T", CostedBuilder, ListedCost)


@dataclass(frozen=True, slots=True)
class CostReport(Generic[T]):
    """One page of a tenant's costs: ``total_cost`` and ``total`` (the number of builders) are of all pages.

    ``total_cost`` is the exact sum rounded once, so it can differ from the sum of the rounded costs.
    """

    currency: str
    total_cost: Decimal
    deployments: tuple[tuple[T, Cost], ...]
    total: int


#: Costs of the builders that cost most.
Spending = CostReport[CostedBuilder]


@dataclass(frozen=True, slots=True)
class DayReport:
    """Costs of all builders together by day. ``total_cost`` is the exact sum rounded once."""

    currency: str
    total_cost: Decimal
    days: tuple[Day, ...]


@dataclass(frozen=True, slots=True)
class Day:
    """Running hours and cost of a day (UTC), of which the present one is not over."""

    start: datetime
    hours: Decimal
    cost: Decimal


@dataclass(frozen=True, slots=True)
class Span:
    """A span of time, [since, until), and a page of the builders that it is asked for."""

    since: datetime | None = None
    until: datetime | None = None
    page: int = 1
    per_page: int = 100


def report(
    uow: UnitOfWork, application: Application, tenant_id: TenantId, now: datetime, span: Span
) -> CostReport[ListedCost]:
    """Return the costs inside the span, oldest builder first."""
    listed = uow.builder_lists.costs(tenant_id, span.page, span.per_page, now)
    spent = uow.ledger.total_of_tenant(tenant_id, now, span.since, span.until)
    sums: Mapping[BuilderId, Sum] = {one.id: one.spent for one in listed}
    if span.since is not None or span.until is not None:
        ledger = uow.ledger.of_builders(list(sums), span.since, span.until)
        sums = {builder: total(segments, now, span.since, span.until) for builder, segments in ledger.items()}
    rows = tuple((one, shown(application, one.resources, sums.get(one.id, Sum()))) for one in listed)
    return CostReport(application.prices.currency, cents(spent.money), rows, uow.builder_lists.count_all(tenant_id))


def dearest(
    uow: UnitOfWork, application: Application, tenant_id: TenantId, now: datetime, month: datetime, limit: int
) -> Spending:
    """Return the costs of the builders that cost most in a month. It reads sums of months, not all segments."""
    ids, total = uow.ledger.dearest(tenant_id, now, month, limit)
    costed = uow.builder_lists.costed(ids)
    spent = uow.ledger.month_of_tenant(tenant_id, now, month)
    sums = uow.ledger.month_of_builders(ids, now, month)
    rows = tuple((costed[one], shown(application, costed[one].resources, sums.get(one, Sum()))) for one in ids)
    return Spending(application.prices.currency, cents(spent.money), rows, total)


def by_day(
    uow: UnitOfWork, application: Application, tenant_id: TenantId, now: datetime, span: tuple[datetime, datetime]
) -> DayReport:
    """Return the costs of each day of the span that has begun: [since, until), both midnights in UTC.

    Raises ``ValidationFailed``: at most ``MOST_DAYS``. The cost grows with the months of the span and with what runs.
    """
    since, until = span_of_days(*span, now)
    sums = uow.ledger.days_of_tenant(tenant_id, now, since, until)
    spent = ((start, sums.get(start, Sum())) for start, _, _ in days_between(since, until))
    days = tuple(Day(start, rate_digits(one.hours), cents(one.money)) for start, one in spent)
    return DayReport(application.prices.currency, cents(sum(sums.values(), Sum()).money), days)


def shown(application: Application, resources: Resources, spent: Sum) -> Cost:
    """Return a builder's cost as shown to users, with the hourly rate of running with these resources."""
    rate = rate_digits(application.prices.hourly_rate(resources, Billing.RUNNING))
    return Cost(application.prices.currency, rate, rate_digits(spent.hours), cents(spent.money))


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
    start = at
    if current is not None:
        start = max(at, current.start)
        uow.ledger.end(current, start)
    uow.ledger.open(Segment(builder.tenant_id, builder.id, billing, start, None, rate))
    # The time at which a cap will be reached depends on all rates: compute it again.
    uow.tenants.make_spending_due(builder.tenant_id, at)


def bill_trial(
    uow: UnitOfWork, prices: Prices, builder: Builder, resources: Resources, start: datetime, end: datetime
) -> None:
    """Bill a finished trial, build or QA report of a version with these resources. Call it once for each of them."""
    rate = prices.hourly_rate(resources, Billing.TRIAL)
    uow.ledger.open(Segment(builder.tenant_id, builder.id, Billing.TRIAL, start, end, rate))
    uow.tenants.make_spending_due(builder.tenant_id, end)


def turn(uow: UnitOfWork, prices: Prices, builder: Builder, before: Billing, after: Billing, at: datetime) -> bool:
    """Bill the builder as ``after`` from ``at`` on if it is billed as ``before``; return True if it was."""
    current = uow.ledger.current(builder.id)
    if current is None or current.billing is not before:
        return False
    version = uow.versions.require(builder.id, builder.version)
    bill(uow, prices, builder, version.settings.resources, after, at)
    return True
