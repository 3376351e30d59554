"""Spending caps: spending under each. ``money.job`` stops builders at 100 % and warns at 80 %."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal

from builderd.application import Application
from builderd.builders.model import Builder
from builderd.core.errors import QuotaExceeded, ValidationFailed
from builderd.core.ids import BuilderId, TenantId
from builderd.database.unit_of_work import UnitOfWork
from builderd.money.model import (
    Account,
    Spent,
    Sum,
    cents,
    lowest,
    month_of,
    name,
    next_month,
    tightest,
)
from builderd.tokens.limits import TenantLimit
from builderd.tokens.model import Tenant


def tenant_of(uow: UnitOfWork, tenant_id: TenantId) -> Tenant:
    tenant = uow.tenants.get(tenant_id)
    assert tenant is not None, "the tenant of a token and of a builder is stored"
    return tenant


def account_of_tenant(uow: UnitOfWork, application: Application, tenant: Tenant, now: datetime) -> Account | None:
    """Return the account of all the tenant's builders; None without a cap, and then nothing is summed."""
    cap = application.tenant_limits.of(tenant).cap_of(tenant)
    if cap is None:
        return None
    rate = sum((rate for _, rate in uow.ledger.rates_of_tenant(tenant.id).values()), Decimal(0))
    return Account(
        cap, Spent(uow.ledger.month_of_tenant(tenant.id, now).money, rate), _warned(tenant.cap_warned_at, now)
    )


def accounts_of_builders(
    uow: UnitOfWork, limit: TenantLimit, builders: Sequence[Builder], now: datetime
) -> Mapping[BuilderId, Account]:
    """Return the accounts of those of a tenant's builders that have a cap of their own."""
    caps = {one.id: cap for one in builders if (cap := limit.cap_of_builder(one.spending_cap)) is not None}
    if not caps:
        return {}
    sums, rates = uow.ledger.month_of_builders(list(caps), now), uow.ledger.rates_of_builders(list(caps))
    return {
        one.id: Account(
            caps[one.id],
            Spent(sums.get(one.id, Sum()).money, rates.get(one.id, Decimal(0))),
            _warned(one.cap_warned_at, now),
        )
        for one in builders
        if one.id in caps
    }


def _warned(at: datetime | None, now: datetime) -> bool:
    return at is not None and at >= month_of(now)


def accounts(
    uow: UnitOfWork, application: Application, tenant: Tenant, builder: Builder | None, now: datetime
) -> Sequence[Account]:
    """Return the tenant's account and the builder's, if they are capped."""
    of_tenant = account_of_tenant(uow, application, tenant, now)
    limit, builders = application.tenant_limits.of(tenant), [builder] if builder else []
    of_builder = accounts_of_builders(uow, limit, builders, now)
    return [*([of_tenant] if of_tenant else []), *of_builder.values()]


def check(
    uow: UnitOfWork, application: Application, tenant_id: TenantId, builder: Builder | None, now: datetime
) -> None:
    """Raise ``QuotaExceeded`` when a cap is reached; ``builder`` is None for one that is to be created."""
    over = tightest(accounts(uow, application, tenant_of(uow, tenant_id), builder, now))
    if over is None:
        return
    ends, currency = next_month(now), application.prices.currency
    call = "PUT /api/v1/spending-cap"
    if builder is not None and not over.cap.of_tenant:
        call = f"PUT /api/v1/builders/{builder.id}/spending-cap"
    raise QuotaExceeded(
        f"The {name(over.cap, currency)} is reached: {cents(over.spent.money)} {currency} are spent this month. "
        f"Raise it with {call} as far as the operator allows, or wait until {ends:%Y-%m-%d} (UTC).",
        retry_after=int((ends - now).total_seconds()) + 1,
    )


@dataclass(frozen=True, slots=True)
class CapView:
    """A cap: the tenant's own, the operator's, the lower of both; ``spent`` to the cent."""

    currency: str
    own: Decimal | None
    operator_limit: Decimal | None
    applies: Decimal | None
    spent: Decimal
    resets_at: datetime


def view_of_tenant(uow: UnitOfWork, application: Application, tenant_id: TenantId, now: datetime) -> CapView:
    """Return the cap of all builders together."""
    tenant = tenant_of(uow, tenant_id)
    limit = application.tenant_limits.of(tenant).monthly
    return _view(application, tenant.spending_cap, limit, uow.ledger.month_of_tenant(tenant_id, now), now)


def view_of_builder(uow: UnitOfWork, application: Application, builder: Builder, now: datetime) -> CapView:
    """Return the cap of one builder."""
    limit = application.tenant_limits.of(tenant_of(uow, builder.tenant_id)).builder_monthly
    spent = uow.ledger.month_of_builders([builder.id], now).get(builder.id, Sum())
    return _view(application, builder.spending_cap, limit, spent, now)


def _view(application: Application, own: Decimal | None, limit: Decimal | None, spent: Sum, now: datetime) -> CapView:
    currency = application.prices.currency
    return CapView(currency, own, limit, lowest(own, limit), cents(spent.money), next_month(now))


# Caps set by the tenant


def set_for_tenant(
    uow: UnitOfWork, application: Application, tenant_id: TenantId, monthly: Decimal | None, now: datetime
) -> None:
    """Set the tenant's cap; None removes it, but not the operator's cap. Raises ``ValidationFailed``."""
    tenant = tenant_of(uow, tenant_id)
    _check_amount(monthly, application.tenant_limits.of(tenant).monthly, application.prices.currency)
    uow.tenants.cap(tenant_id, monthly)
    uow.tenants.make_spending_due(tenant_id, now)


def set_for_builder(
    uow: UnitOfWork, application: Application, builder: Builder, monthly: Decimal | None, now: datetime
) -> Builder:
    """Set the cap of one builder, which must be locked; None removes it, but not the operator's cap.

    Raises ``ValidationFailed``.
    """
    tenant = tenant_of(uow, builder.tenant_id)
    _check_amount(monthly, application.tenant_limits.of(tenant).builder_monthly, application.prices.currency)
    capped = replace(builder, spending_cap=monthly, cap_warned_at=None, updated_at=now)
    uow.builders.save(capped)
    uow.tenants.make_spending_due(builder.tenant_id, now)
    return capped


def _check_amount(monthly: Decimal | None, limit: Decimal | None, currency: str) -> None:
    if monthly is not None and limit is not None and monthly > limit:
        raise ValidationFailed({"monthly": [f"must be at most {cents(limit)} {currency}: the operator set this limit"]})
