"""Spending caps: spending under each, stops at 100 %, warnings at 80 %."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal

from builderd.application import Application
from builderd.builders import candidates
from builderd.builders.model import Builder, Cause, Desired, StopKind
from builderd.core.errors import QuotaExceeded, ValidationFailed
from builderd.core.ids import BuilderId, TenantId
from builderd.database.unit_of_work import UnitOfWork
from builderd.events.model import SYSTEM, Event
from builderd.money.model import (
    Account,
    Spent,
    Sum,
    cap_message,
    cents,
    lowest,
    month_of,
    name,
    next_month,
    tightest,
)
from builderd.tokens.limits import TenantLimit
from builderd.tokens.model import Tenant

WARNING = "spending.warning"


def _tenant(uow: UnitOfWork, tenant_id: TenantId) -> Tenant:
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
    over = tightest(accounts(uow, application, _tenant(uow, tenant_id), builder, now))
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
    tenant = _tenant(uow, tenant_id)
    limit = application.tenant_limits.of(tenant).monthly
    return _view(application, tenant.spending_cap, limit, uow.ledger.month_of_tenant(tenant_id, now), now)


def view_of_builder(uow: UnitOfWork, application: Application, builder: Builder, now: datetime) -> CapView:
    """Return the cap of one builder."""
    limit = application.tenant_limits.of(_tenant(uow, builder.tenant_id)).builder_monthly
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
    tenant = _tenant(uow, tenant_id)
    _check_amount(monthly, application.tenant_limits.of(tenant).monthly, application.prices.currency)
    uow.tenants.cap(tenant_id, monthly)
    uow.tenants.make_spending_due(tenant_id, now)


def set_for_builder(
    uow: UnitOfWork, application: Application, builder: Builder, monthly: Decimal | None, now: datetime
) -> Builder:
    """Set the cap of one builder, which must be locked; None removes it, but not the operator's cap.

    Raises ``ValidationFailed``.
    """
    tenant = _tenant(uow, builder.tenant_id)
    _check_amount(monthly, application.tenant_limits.of(tenant).builder_monthly, application.prices.currency)
    capped = replace(builder, spending_cap=monthly, cap_warned_at=None, updated_at=now)
    uow.builders.save(capped)
    uow.tenants.make_spending_due(builder.tenant_id, now)
    return capped


def _check_amount(monthly: Decimal | None, limit: Decimal | None, currency: str) -> None:
    if monthly is not None and limit is not None and monthly > limit:
        raise ValidationFailed({"monthly": [f"must be at most {cents(limit)} {currency}: the operator set this limit"]})


# Enforcement


@dataclass(frozen=True, slots=True)
class CapDecision:
    """Actions due for a tenant's spending now. ``next_check`` None: nothing is capped."""

    stop: Sequence[BuilderId]
    warn_tenant: Account | None
    warn_builders: Sequence[BuilderId]
    next_check: datetime | None


def has_any(uow: UnitOfWork, application: Application, tenant_id: TenantId) -> bool:
    """Return True if the tenant or one of its builders has a cap. Sums nothing."""
    tenant = _tenant(uow, tenant_id)
    limit = application.tenant_limits.of(tenant)
    return limit.cap_of(tenant) is not None or limit.builder_monthly is not None or uow.builders.any_capped(tenant_id)


def judge(uow: UnitOfWork, application: Application, tenant_id: TenantId, now: datetime) -> CapDecision:
    """Return the stops and warnings due for a tenant's spending. Changes nothing."""
    tenant = _tenant(uow, tenant_id)
    limit = application.tenant_limits.of(tenant)
    of_tenant = account_of_tenant(uow, application, tenant, now)
    capped = _capped(uow, limit, tenant_id, now)
    own = accounts_of_builders(uow, limit, capped, now)
    over = [one for one in capped if own[one.id].is_reached]
    if of_tenant and of_tenant.is_reached:
        over = list(uow.builders.running(tenant_id))
    checks = [one.next_check(now) for one in (*([of_tenant] if of_tenant else []), *own.values())]
    if limit.builder_monthly is not None:
        checks.append(next_month(now))
    return CapDecision(
        stop=[one.id for one in over if one.desired is Desired.RUNNING],
        warn_tenant=of_tenant if of_tenant and of_tenant.warning_due else None,
        warn_builders=[one.id for one in capped if own[one.id].warning_due],
        next_check=min(checks, default=None),
    )


def _capped(uow: UnitOfWork, limit: TenantLimit, tenant_id: TenantId, now: datetime) -> Sequence[Builder]:
    """Return the live builders whose cap may warn or stop them this month; stopped builders cost something, too.

    Of the operator's cap the database names those that reach the warning by the month's end at their present rate, so
    that the others are not read: a change of a rate makes the tenant due again.
    """
    capped = uow.builders.capped(tenant_id)
    cap = limit.cap_of_builder(None)
    if cap is None:
        return capped
    near = uow.builders.get_all(uow.ledger.reaching(tenant_id, now, cap.warning))
    live = {one.id: one for one in (*capped, *near.values()) if one.desired is not Desired.DELETED}
    return sorted(live.values(), key=lambda one: (one.created_at, one.id))


def stop(uow: UnitOfWork, application: Application, builder_id: BuilderId, now: datetime) -> Builder | None:
    """Stop a running builder whose spending cap is reached; return None when it is no longer reached."""
    builder = uow.builders.get(builder_id, lock=True)
    if builder is None or builder.desired is not Desired.RUNNING:
        return None
    over = tightest(accounts(uow, application, _tenant(uow, builder.tenant_id), builder, now))
    if over is None:
        return None
    reason = cap_message(over.cap, application.prices.currency)
    candidates.give_up_restore(uow, builder, reason)
    stopped = replace(
        candidates.fail_candidate(uow, builder, application.prices, reason, now),
        desired=Desired.STOPPED,
        cause=Cause(SYSTEM, reason),
        stop_kind=StopKind.CAP,
        updated_at=now,
    )
    uow.builders.save(stopped)
    uow.builders.make_due(builder_id, now)
    return stopped


def warn_of_builder(uow: UnitOfWork, application: Application, builder_id: BuilderId, now: datetime) -> None:
    """Record, once a month, an event that most of a builder's cap is spent."""
    builder = uow.builders.get(builder_id, lock=True)
    if builder is None:
        return
    limit = application.tenant_limits.of(_tenant(uow, builder.tenant_id))
    account = accounts_of_builders(uow, limit, [builder], now).get(builder_id)
    if account is not None and account.warning_due:
        uow.events.add(_warning(application, builder.tenant_id, builder.id, account, now))
        uow.builders.save(replace(builder, cap_warned_at=now))


def warn_of_tenant(uow: UnitOfWork, application: Application, tenant_id: TenantId, now: datetime) -> None:
    """Record, once a month, an event that most of the tenant's cap is spent."""
    account = account_of_tenant(uow, application, _tenant(uow, tenant_id), now)
    if account is None or not account.warning_due:
        return
    uow.events.add(_warning(application, tenant_id, None, account, now))
    uow.tenants.warned(tenant_id, now)


def _warning(
    application: Application, tenant_id: TenantId, builder_id: BuilderId | None, account: Account, now: datetime
) -> Event:
    currency, cap, spent = application.prices.currency, account.cap, account.spent.money
    whose = "tenant" if cap.of_tenant else "builder"
    percent = int(100 * spent / cap.monthly) if cap.monthly else 100
    return Event(
        tenant_id=tenant_id,
        builder_id=builder_id,
        time=now,
        type=WARNING,
        actor=SYSTEM,
        reason=f"{min(percent, 100)} % of the {whose}'s spending cap of {cents(cap.monthly)} {currency} are spent",
        details={"cap": whose, "monthly": str(cents(cap.monthly)), "spent": str(cents(spent)), "currency": currency},
    )
