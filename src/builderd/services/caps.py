"""Spending caps: spending under each, stops at 100 %, warnings at 80 %."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal

from builderd.domain.builders import Builder, Cause, Desired, StopKind
from builderd.domain.caps import Account, Cap, Spent, cap_message, lowest, name, tightest
from builderd.domain.errors import QuotaExceeded, ValidationFailed
from builderd.domain.events import SYSTEM, Event
from builderd.domain.ids import BuilderId, TenantId
from builderd.domain.months import month_of, next_month
from builderd.domain.prices import Segment, Sum, cents
from builderd.domain.tenants import Tenant
from builderd.ports.store import UnitOfWork
from builderd.services import candidates
from builderd.services.application import Application

WARNING = "spending.warning"


@dataclass(frozen=True, slots=True)
class MonthToDate:
    """The present month of one tenant: sums of its builders, and open ledger segments."""

    tenant: Tenant
    sums: Mapping[BuilderId, Sum]
    open: Sequence[Segment]

    def of_tenant(self, cap: Cap, now: datetime) -> Account:
        spent = Spent(sum(self.sums.values(), Sum()).money, _rate(self.open))
        return Account(cap, spent, _warned(self.tenant.cap_warned_at, now))

    def of_builder(self, builder: Builder, cap: Cap, now: datetime) -> Account:
        mine = [segment for segment in self.open if segment.builder_id == builder.id]
        spent = Spent(self.sums.get(builder.id, Sum()).money, _rate(mine))
        return Account(cap, spent, _warned(builder.cap_warned_at, now))


def _rate(segments: Sequence[Segment]) -> Decimal:
    return sum((segment.hourly_rate for segment in segments), Decimal(0))


def _warned(at: datetime | None, now: datetime) -> bool:
    return at is not None and at >= month_of(now)


def month_to_date(uow: UnitOfWork, tenant_id: TenantId, now: datetime) -> MonthToDate:
    """Return the tenant's costs of this month: sums of its builders and open ledger segments."""
    tenant = uow.tenants.get(tenant_id)
    assert tenant is not None, "the tenant of a builder is stored"
    return MonthToDate(tenant, uow.ledger.of_month(tenant_id, now), uow.ledger.open_of(tenant_id))


def accounts(application: Application, found: MonthToDate, builder: Builder | None, now: datetime) -> Sequence[Account]:
    """Return the tenant's account and the builder's, if they are capped."""
    limit = application.tenant_limits.of(found.tenant)
    result = []
    if (cap := limit.cap_of(found.tenant)) is not None:
        result.append(found.of_tenant(cap, now))
    if builder is not None and (cap := limit.cap_of_builder(builder.spending_cap)) is not None:
        result.append(found.of_builder(builder, cap, now))
    return result


def check(
    uow: UnitOfWork, application: Application, tenant_id: TenantId, builder: Builder | None, now: datetime
) -> None:
    """Raise ``QuotaExceeded`` when a cap is reached; ``builder`` is None for one that is to be created."""
    found = month_to_date(uow, tenant_id, now)
    over = tightest(accounts(application, found, builder, now))
    if over is None:
        return
    ends = next_month(now)
    currency = application.prices.currency
    call = "PUT /api/v1/spending-cap" if over.cap.of_tenant else f"PUT /api/v1/builders/{_id(builder)}/spending-cap"
    raise QuotaExceeded(
        f"The {name(over.cap, currency)} is reached: {cents(over.spent.money)} {currency} are spent this month. "
        f"Raise it with {call} as far as the operator allows, or wait until {ends:%Y-%m-%d} (UTC).",
        retry_after=_seconds_until(ends, now),
    )


def _id(builder: Builder | None) -> str:
    assert builder is not None, "only a builder has a cap of its own"
    return builder.id


def _seconds_until(then: datetime, now: datetime) -> int:
    return int((then - now).total_seconds()) + 1


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
    found = month_to_date(uow, tenant_id, now)
    limit = application.tenant_limits.of(found.tenant).monthly
    return _view(application, found.tenant.spending_cap, limit, sum(found.sums.values(), Sum()), now)


def view_of_builder(uow: UnitOfWork, application: Application, builder: Builder, now: datetime) -> CapView:
    """Return the cap of one builder."""
    found = month_to_date(uow, builder.tenant_id, now)
    limit = application.tenant_limits.of(found.tenant).builder_monthly
    return _view(application, builder.spending_cap, limit, found.sums.get(builder.id, Sum()), now)


def _view(application: Application, own: Decimal | None, limit: Decimal | None, spent: Sum, now: datetime) -> CapView:
    currency = application.prices.currency
    return CapView(currency, own, limit, lowest(own, limit), cents(spent.money), next_month(now))


# Caps set by the tenant


def set_for_tenant(
    uow: UnitOfWork, application: Application, tenant_id: TenantId, monthly: Decimal | None, now: datetime
) -> None:
    """Set the tenant's cap; None removes it, but not the operator's cap. Raises ``ValidationFailed``."""
    tenant = uow.tenants.get(tenant_id)
    assert tenant is not None, "the tenant of a token is stored"
    _check_amount(monthly, application.tenant_limits.of(tenant).monthly, application.prices.currency)
    uow.tenants.cap(tenant_id, monthly)
    uow.tenants.make_spending_due(tenant_id, now)


def set_for_builder(
    uow: UnitOfWork, application: Application, builder: Builder, monthly: Decimal | None, now: datetime
) -> Builder:
    """Set the cap of one builder, which must be locked; None removes it, but not the operator's cap.

    Raises ``ValidationFailed``.
    """
    tenant = uow.tenants.get(builder.tenant_id)
    assert tenant is not None, "the tenant of a builder is stored"
    _check_amount(monthly, application.tenant_limits.of(tenant).builder_monthly, application.prices.currency)
    capped = replace(builder, spending_cap=monthly, cap_warned_at=None, updated_at=now)
    uow.builders.save(capped)
    uow.tenants.make_spending_due(builder.tenant_id, now)
    return capped


def _check_amount(monthly: Decimal | None, limit: Decimal | None, currency: str) -> None:
    if monthly is None:
        return
    if limit is not None and monthly > limit:
        raise ValidationFailed({"monthly": [f"must be at most {cents(limit)} {currency}: the operator set this limit"]})


# Enforcement


@dataclass(frozen=True, slots=True)
class CapDecision:
    """Actions due for a tenant's spending now. ``next_check`` None: nothing is capped."""

    stop: Sequence[BuilderId]
    warn_tenant: Account | None
    warn_builders: Sequence[BuilderId]
    next_check: datetime | None


def judge(uow: UnitOfWork, application: Application, tenant_id: TenantId, now: datetime) -> CapDecision:
    """Return the stops and warnings due for a tenant's spending. Changes nothing."""
    found = month_to_date(uow, tenant_id, now)
    of_tenant = next(iter(accounts(application, found, None, now)), None)
    stop, warn, checks = [], [], [of_tenant.next_check(now)] if of_tenant else []
    for builder in uow.builders.of_tenant(tenant_id, deleted=False):
        held = accounts(application, found, builder, now)
        if builder.desired is Desired.RUNNING and tightest(held):
            stop.append(builder.id)
        own = [one for one in held if not one.cap.of_tenant]
        warn += [builder.id for one in own if one.warning_due]
        checks += [one.next_check(now) for one in own]
    warned = of_tenant if of_tenant and of_tenant.warning_due else None
    return CapDecision(stop, warned, warn, min(checks, default=None))


def stop(uow: UnitOfWork, application: Application, builder_id: BuilderId, now: datetime) -> Builder | None:
    """Stop a running builder whose spending cap is reached; return None when it is no longer reached."""
    builder = uow.builders.get(builder_id, lock=True)
    if builder is None or builder.desired is not Desired.RUNNING:
        return None
    over = tightest(accounts(application, month_to_date(uow, builder.tenant_id, now), builder, now))
    if over is None:
        return None
    reason = cap_message(over.cap, application.prices.currency)
    candidates.give_up_restore(uow, builder, reason)
    wished = replace(
        candidates.fail_candidate(uow, builder, application.prices, reason, now),
        desired=Desired.STOPPED,
        cause=Cause(SYSTEM, reason),
        stop_kind=StopKind.CAP,
        updated_at=now,
    )
    uow.builders.save(wished)
    uow.builders.make_due(builder_id, now)
    return wished


def warn_of_builder(uow: UnitOfWork, application: Application, builder_id: BuilderId, now: datetime) -> None:
    """Record, once a month, an event that most of a builder's cap is spent."""
    builder = uow.builders.get(builder_id, lock=True)
    if builder is None:
        return
    for account in accounts(application, month_to_date(uow, builder.tenant_id, now), builder, now):
        if not account.cap.of_tenant and account.warning_due:
            uow.events.add(_warning(application, builder.tenant_id, builder.id, account, now))
            uow.builders.save(replace(builder, cap_warned_at=now))


def warn_of_tenant(uow: UnitOfWork, application: Application, tenant_id: TenantId, now: datetime) -> None:
    """Record, once a month, an event that most of the tenant's cap is spent."""
    found = month_to_date(uow, tenant_id, now)
    account = next(iter(accounts(application, found, None, now)), None)
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
