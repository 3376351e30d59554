"""Spending: the costs of a tenant's builders, deleted ones included."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal

from builderd.domain.builders import Builder
from builderd.domain.ids import BuilderId, TenantId
from builderd.domain.prices import Billing, Cost, Sum, cents, rate_digits, total
from builderd.domain.versions import Version
from builderd.ports.store import UnitOfWork
from builderd.services.application import Application


@dataclass(frozen=True, slots=True)
class Spending:
    """One page of a tenant's costs: ``total_cost`` and ``total`` (the number of builders) are of all pages.

    ``total_cost`` is the exact sum rounded once, so it can differ from the sum of the rounded costs.
    """

    currency: str
    total_cost: Decimal
    deployments: tuple[tuple[Builder, Cost], ...]
    total: int


@dataclass(frozen=True, slots=True)
class Span:
    """A span of time, [since, until), and a page of the builders that it is asked for."""

    since: datetime | None = None
    until: datetime | None = None
    page: int = 1
    per_page: int = 100


def report(
    uow: UnitOfWork,
    application: Application,
    tenant_id: TenantId,
    now: datetime,
    span: Span,
) -> Spending:
    """Return the costs inside the span, oldest builder first."""
    builders, total = uow.builders.page_of_tenant(tenant_id, span.page, span.per_page)
    spent = uow.ledger.total_of_tenant(tenant_id, now, span.since, span.until)
    rows = _rows(uow, application, builders, now, span)
    return Spending(application.prices.currency, cents(spent.money), rows, total)


def dearest(
    uow: UnitOfWork, application: Application, tenant_id: TenantId, now: datetime, month: datetime, limit: int
) -> Spending:
    """Return the costs of the builders that cost most in a month. It reads sums of months, not all segments."""
    ids, total = uow.ledger.dearest(tenant_id, now, month, limit)
    stored = uow.builders.get_all(ids)
    spent = uow.ledger.month_of_tenant(tenant_id, now, month)
    rows = _shown(uow, application, [stored[one] for one in ids], uow.ledger.month_of_builders(ids, now, month))
    return Spending(application.prices.currency, cents(spent.money), rows, total)


def _rows(
    uow: UnitOfWork, application: Application, builders: Sequence[Builder], now: datetime, span: Span
) -> tuple[tuple[Builder, Cost], ...]:
    return _shown(uow, application, builders, _sums(uow, [one.id for one in builders], now, span.since, span.until))


def _shown(
    uow: UnitOfWork, application: Application, builders: Sequence[Builder], sums: Mapping[BuilderId, Sum]
) -> tuple[tuple[Builder, Cost], ...]:
    versions = uow.versions.get_all([(one.id, one.version) for one in builders])
    return tuple((one, shown(application, versions[one.id], sums.get(one.id, Sum()))) for one in builders)


def _sums(
    uow: UnitOfWork, builders: Sequence[BuilderId], now: datetime, since: datetime | None, until: datetime | None
) -> Mapping[BuilderId, Sum]:
    if since is None and until is None:
        return uow.ledger.totals(builders, now)
    ledger = uow.ledger.of_builders(builders, since, until)
    return {builder: total(segments, now, since, until) for builder, segments in ledger.items()}


def shown(application: Application, version: Version, spent: Sum) -> Cost:
    """Return a builder's cost as shown to users, with the hourly rate of this version's resources."""
    rate = application.prices.hourly_rate(version.settings.resources, Billing.RUNNING)
    return Cost(application.prices.currency, rate_digits(rate), rate_digits(spent.hours), cents(spent.money))
