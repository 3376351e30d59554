"""Totals of tenants, which quotas are checked by, are counted anew each hour: they are kept by differences."""

from __future__ import annotations

from functools import partial

from builderd.domain.ids import TenantId
from builderd.reconciler.core.every import every
from builderd.services.application import Application
from builderd.store import UnitOfWork

#: Seconds between two rounds. The start of the service counts, too.
INTERVAL = 3_600.0


async def watch(application: Application) -> None:
    """Count once an hour until cancelled."""
    await every(INTERVAL, partial(count_anew, application), event="count of live builders", wait_first=True)


async def count_anew(application: Application) -> None:
    """Count the builders of all tenants, each in a transaction of its own: one holds up that tenant's changes alone."""
    for tenant in await application.store.read(lambda uow: uow.tenants.all()):
        await application.store.write(partial(_count, tenant=tenant.id))


def _count(uow: UnitOfWork, tenant: TenantId) -> None:
    uow.tenants.count_anew(tenant)
