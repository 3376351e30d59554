"""Enforcement of spending caps: tenants are checked when one of their caps, or the warning of it, will be reached."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial

from builderd.application import Application
from builderd.builders import candidates
from builderd.builders.model import Builder, Cause, Desired, StopKind
from builderd.core.ids import BuilderId, TenantId
from builderd.core.loops import FaultPoint, no_fault
from builderd.database.unit_of_work import UnitOfWork
from builderd.events.model import SYSTEM, Event
from builderd.money.caps import account_of_tenant, accounts, accounts_of_builders, tenant_of
from builderd.money.model import (
    Account,
    cap_message,
    cents,
    next_month,
    tightest,
)
from builderd.tokens.limits import TenantLimit

WARNING = "spending.warning"

#: Time after which another process may repeat a spending check that has not ended.
LEASE = timedelta(seconds=5)


async def check_due(application: Application, fault: FaultPoint = no_fault) -> None:
    """Check the spending of all tenants that are due.

    A tenant is due when one of its caps, or the warning of it, will be reached. Every change of the ledger and of a
    cap stores that time with the tenant, so that it survives a restart.
    """
    now = application.clock.now()
    for tenant, seen in await application.store.read(lambda uow: uow.tenants.spending_due(now)):
        await _check(application, tenant, seen, fault)


async def _check(application: Application, tenant: TenantId, seen: datetime, fault: FaultPoint) -> None:
    now = application.clock.now()
    lease = now + LEASE
    # Taken first: what changes from here on makes it due again, and is checked after this.
    if not await application.store.write(
        partial(_take, application=application, tenant=tenant, seen=seen, lease=lease)
    ):
        return
    fault("Cap.begun")
    verdict = await application.store.read(lambda uow: judge(uow, application, tenant, now))
    await _warn(application, tenant, verdict, now)
    for builder in verdict.stop:
        await _stop(application, builder)
        fault("Cap.done")
    # Its own answer need not be taken: where it changed meanwhile, the tenant is due as it is.
    await application.store.write(lambda uow: uow.tenants.postpone_spending(tenant, lease, verdict.next_check))
    fault("Cap.recorded")


def _take(uow: UnitOfWork, application: Application, tenant: TenantId, seen: datetime, lease: datetime) -> bool:
    """Take the check of a tenant; return False if another process has it, or if there is no cap to check."""
    if not uow.tenants.postpone_spending(tenant, seen, lease):
        return False
    if has_any(uow, application, tenant):
        return True
    uow.tenants.postpone_spending(tenant, lease, None)
    return False


async def _warn(application: Application, tenant: TenantId, verdict: CapDecision, now: datetime) -> None:
    if verdict.warn_tenant:
        await application.store.write(lambda uow: warn_of_tenant(uow, application, tenant, now))
    for builder in verdict.warn_builders:
        await application.store.write(partial(warn_of_builder, application=application, builder_id=builder, now=now))


async def _stop(application: Application, builder: BuilderId) -> None:
    # Judged again: the month may have ended since, and a caller started the builder in the new one.
    stopped = await application.store.write(lambda uow: stop(uow, application, builder, application.clock.now()))
    if stopped is not None:
        application.signals.desired_changed(builder)
        application.signals.change(builder)


@dataclass(frozen=True, slots=True)
class CapDecision:
    """Actions due for a tenant's spending now. ``next_check`` None: nothing is capped."""

    stop: Sequence[BuilderId]
    warn_tenant: Account | None
    warn_builders: Sequence[BuilderId]
    next_check: datetime | None


def has_any(uow: UnitOfWork, application: Application, tenant_id: TenantId) -> bool:
    """Return True if the tenant or one of its builders has a cap. Sums nothing."""
    tenant = tenant_of(uow, tenant_id)
    limit = application.tenant_limits.of(tenant)
    return limit.cap_of(tenant) is not None or limit.builder_monthly is not None or uow.builders.any_capped(tenant_id)


def judge(uow: UnitOfWork, application: Application, tenant_id: TenantId, now: datetime) -> CapDecision:
    """Return the stops and warnings due for a tenant's spending. Changes nothing."""
    tenant = tenant_of(uow, tenant_id)
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
    over = tightest(accounts(uow, application, tenant_of(uow, builder.tenant_id), builder, now))
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
    limit = application.tenant_limits.of(tenant_of(uow, builder.tenant_id))
    account = accounts_of_builders(uow, limit, [builder], now).get(builder_id)
    if account is not None and account.warning_due:
        uow.events.add(_warning(application, builder.tenant_id, builder.id, account, now))
        uow.builders.save(replace(builder, cap_warned_at=now))


def warn_of_tenant(uow: UnitOfWork, application: Application, tenant_id: TenantId, now: datetime) -> None:
    """Record, once a month, an event that most of the tenant's cap is spent."""
    account = account_of_tenant(uow, application, tenant_of(uow, tenant_id), now)
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
