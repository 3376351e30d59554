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
    """``total_cost`` is the exact sum rounded once, so it can differ from the sum of the rounded costs."""

    currency: str
    total_cost: Decimal
    deployments: tuple[tuple[Builder, Cost], ...]


def report(
    uow: UnitOfWork,
    application: Application,
    tenant_id: TenantId,
    now: datetime,
    *,
    since: datetime | None = None,
    until: datetime | None = None,
) -> Spending:
    """Return the costs inside [since, until), oldest builder first."""
    builders = uow.builders.of_tenant(tenant_id, deleted=True)
    sums = _sums(uow, [builder.id for builder in builders], now, since, until)
    versions = uow.versions.current(tenant_id)
    rows = [(one, shown(application, versions[one.id], sums.get(one.id, Sum()))) for one in builders]
    spent = sum(sums.values(), Sum())
    return Spending(application.prices.currency, cents(spent.money), tuple(rows))


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
