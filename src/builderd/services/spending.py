"""Spending: what a tenant's builders cost, deleted ones included."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal

from builderd.domain.builders import Builder
from builderd.domain.ids import TenantId
from builderd.domain.prices import Billing, Cost, cents, rate_digits, total
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
    """The costs inside [since, until), oldest builder first."""
    builders = uow.builders.of_tenant(tenant_id, deleted=True)
    ledger = uow.ledger.of_builders([builder.id for builder in builders])
    money = Decimal(0)
    rows = []
    for builder in builders:
        hours, cost = total(ledger.get(builder.id, ()), now, since, until)
        money += cost
        rows.append((builder, _shown(uow, application, builder, hours, cost)))
    return Spending(application.prices.currency, cents(money), tuple(rows))


def _shown(uow: UnitOfWork, application: Application, builder: Builder, hours: Decimal, cost: Decimal) -> Cost:
    version = uow.versions.get(builder.id, builder.version)
    assert version is not None, "a builder's current version is always stored"
    rate = application.prices.hourly_rate(version.settings.resources, Billing.RUNNING)
    return Cost(application.prices.currency, rate_digits(rate), rate_digits(hours), cents(cost))
