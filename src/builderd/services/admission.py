"""Admission control: quotas of a tenant and capacity of the machine, checked before anything starts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime

from builderd.domain.builders import Builder, Desired
from builderd.domain.errors import NoCapacity, QuotaExceeded
from builderd.domain.ids import TenantId
from builderd.domain.resources import UNLIMITED, Allocation, Excess, allocation_of, larger_of
from builderd.domain.versions import Version
from builderd.services import caps
from builderd.services.application import Application
from builderd.store import UnitOfWork


def admit(
    uow: UnitOfWork,
    application: Application,
    tenant_id: TenantId,
    more: Allocation,
    now: datetime,
    *,
    builder: Builder | None = None,
) -> None:
    """Reserve ``more`` resources. Raises ``QuotaExceeded`` or ``NoCapacity``; a reduction is always admitted.

    Until the end of the unit of work no other one can reserve anything, so that two cannot take the last capacity.
    ``builder`` is the one that gets the resources, None for one that is to be created.
    """
    if more.running_builders > 0:
        caps.check(uow, application, tenant_id, builder, now)
    uow.builders.lock_demand()
    _check_quota(uow, application, tenant_id, more)
    _check_capacity(uow, application, more)


def admit_run(uow: UnitOfWork, application: Application, builder: Builder, now: datetime) -> None:
    """Admit a run of a locked builder. One already wanted running needs no more resources; only its cap is checked.

    Raises ``QuotaExceeded`` or ``NoCapacity``.
    """
    if builder.desired is Desired.RUNNING:
        caps.check(uow, application, builder.tenant_id, builder, now)
        return
    admit_change(uow, application, builder, replace(builder, desired=Desired.RUNNING, disk_released_at=None), now)


def admit_change(
    uow: UnitOfWork,
    application: Application,
    before: Builder,
    after: Builder,
    now: datetime,
    *,
    version: Version | None = None,
) -> None:
    """Admit the change of a locked builder from ``before`` (stored) to ``after``, with ``version`` if it is a new one.

    Raises ``QuotaExceeded`` or ``NoCapacity``.
    """
    more = _promised(uow, after, version) - _promised(uow, before)
    admit(uow, application, before.tenant_id, more, now, builder=before)


def _promised(uow: UnitOfWork, builder: Builder, new: Version | None = None) -> Allocation:
    """Return a builder's demand as the store counts it; during a deployment, the greater of both versions' demands."""

    def of(number: int, *, running: bool) -> Allocation:
        version = new if new is not None and new.number == number else uow.versions.get(builder.id, number)
        assert version is not None, "a builder's versions are always stored"
        allocation = allocation_of(version.settings.resources, running=running)
        return allocation if builder.disk_released_at is None else replace(allocation, disk=0)

    serving = of(builder.version, running=builder.desired is Desired.RUNNING)
    return serving if builder.candidate is None else larger_of(serving, of(builder.candidate.version, running=True))


def _check_quota(uow: UnitOfWork, application: Application, tenant_id: TenantId, more: Allocation) -> None:
    tenant = uow.tenants.get(tenant_id)
    assert tenant is not None, "the tenant of a token is stored"
    quota = application.tenant_limits.of(tenant).quota
    if quota == UNLIMITED:
        return
    found = list(quota.exceeded(_allocated(uow, more, tenant_id), more))
    if found:
        raise QuotaExceeded(f"Your quota is reached: {_listed(found)}. {_advice(found)}", data=_data(found))


def _check_capacity(uow: UnitOfWork, application: Application, more: Allocation) -> None:
    tenant_limits = application.tenant_limits
    limit = application.engine.capacity().times(tenant_limits.cpu_factor, tenant_limits.memory_factor)
    found = list(limit.exceeded(_allocated(uow, more), more))
    if found:
        raise NoCapacity(
            f"The machine has no room for it: {_listed(found)}. {_room(found)}",
            data=_data(found),
            retry_after=60,
        )


def _allocated(uow: UnitOfWork, more: Allocation, tenant_id: TenantId | None = None) -> Allocation:
    """Return what is allocated of the resources that grow by ``more``: a start does not ask for disks."""
    if more.builders > 0 or more.disk > 0:
        return uow.builders.allocated(tenant_id)
    return uow.builders.allocated_to_running(tenant_id)


def _listed(found: Sequence[Excess]) -> str:
    return "; ".join(f"{excess.name}: {excess}" for excess in found)


def _advice(found: Sequence[Excess]) -> str:
    if all(excess.name in ("builders", "disk") for excess in found):
        return "Delete a builder, or ask the operator for more."
    return "Stop or delete a builder, ask for less, or ask the operator for more."


def _room(found: Sequence[Excess]) -> str:
    """Return what would help: a builder that is stopped gives back CPU and memory, and keeps its disk."""
    if any(excess.name == "disk" for excess in found):
        return (
            "Ask for less disk, or delete a builder that is not needed (DELETE /api/v1/builders/{uuid}): stopping one "
            "frees no disk."
        )
    return "Ask for less, or stop a builder, or try again when others have stopped."


def _data(found: Sequence[Excess]) -> dict[str, dict[str, float]]:
    return {one.name: {"limit": one.limit, "used": one.used, "wanted": one.wanted} for one in found}
