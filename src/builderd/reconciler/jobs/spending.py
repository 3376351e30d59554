"""Spending: tenants are checked when one of their caps, or the warning of it, will be reached; never in between.

When that will be is written down with the tenant, and made now by every change of the ledger and of a cap: a service
that was killed finds it there.
"""

from __future__ import annotations

import logging
from datetime import datetime, timedelta
from functools import partial

from builderd.domain.ids import BuilderId, TenantId
from builderd.reconciler.core.loops import FaultPoint, no_fault
from builderd.services import caps
from builderd.services.application import Application
from builderd.services.caps import CapDecision
from builderd.store import UnitOfWork

log = logging.getLogger(__name__)

#: Time after which another process may repeat a spending check that has not ended.
LEASE = timedelta(seconds=5)


async def check_due(application: Application, fault: FaultPoint = no_fault) -> None:
    """Check the spending of all tenants that are due."""
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
    verdict = await application.store.read(lambda uow: caps.judge(uow, application, tenant, now))
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
    if caps.has_any(uow, application, tenant):
        return True
    uow.tenants.postpone_spending(tenant, lease, None)
    return False


async def _warn(application: Application, tenant: TenantId, verdict: CapDecision, now: datetime) -> None:
    if verdict.warn_tenant:
        await application.store.write(lambda uow: caps.warn_of_tenant(uow, application, tenant, now))
    for builder in verdict.warn_builders:
        await application.store.write(
            partial(caps.warn_of_builder, application=application, builder_id=builder, now=now)
        )


async def _stop(application: Application, builder: BuilderId) -> None:
    # Judged again: the month may have ended since, and a caller started the builder in the new one.
    stopped = await application.store.write(lambda uow: caps.stop(uow, application, builder, application.clock.now()))
    if stopped is not None:
        application.signals.desired_changed(builder)
        application.signals.change(builder)
