"""Admission control: quotas of a tenant, also of its layers, and capacity of the machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from builderd.application import Application
from builderd.builders.model import Builder, Desired
from builderd.core.errors import InstallFailed, NoCapacity, QuotaExceeded
from builderd.core.ids import TenantId
from builderd.core.resources import GB, PROMISED_BY, UNLIMITED, Allocation, Excess, allocation_of, larger_of
from builderd.database.unit_of_work import UnitOfWork
from builderd.dependencies.model import LayerPlan
from builderd.money import caps
from builderd.versions.model import Version


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
    limits = application.tenant_limits
    tenant = uow.tenants.get(tenant_id)
    assert tenant is not None, "the tenant of a token is stored"
    quota = limits.of(tenant).quota
    if quota != UNLIMITED and (found := list(quota.exceeded(_allocated(uow, more, tenant_id), more))):
        raise QuotaExceeded(f"Your quota is reached: {_listed(found)}. {_advice(found)}", data=_data(found))
    limit = limits.of_machine(application.engine.capacity())
    if found := list(limit.exceeded(_allocated(uow, more), more)):
        names = ", ".join(PROMISED_BY[one.name] for one in found)
        why = f"The machine has no room for it: {_listed(found)}. {_room(found)} The operator sets the limit ({names})."
        raise NoCapacity(why, data=_data(found), retry_after=60)


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
        allocation = allocation_of(version.settings.resources, running=running, further=builder.further)
        return allocation if builder.disk_released_at is None else replace(allocation, disk=0)

    serving = of(builder.version, running=builder.desired is Desired.RUNNING)
    return serving if builder.candidate is None else larger_of(serving, of(builder.candidate.version, running=True))


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


#: Share of the store that a tenant's layers may take where ``tenant.layers`` is not set.
DEFAULT_SHARE = 0.5
#: A build with less room than this is not begun, in bytes.
LEAST_ROOM = 16 << 20
#: A layer that was asked for within so many seconds is kept: a version may be about to use it.
JUST_ASKED = 60.0


@dataclass(frozen=True, slots=True)
class LayerQuota:
    """A tenant's limit, what counts against it, and its layers that no builder may run any more."""

    limit: int
    counted: int
    unused: frozenset[str]
    #: Bytes of the layer that was asked about, 0 if it counts already or is not there.
    more: int = 0

    @property
    def room(self) -> int:
        return self.limit - self.counted - self.more


async def check_reuse(application: Application, tenant_id: TenantId, key: str) -> None:
    """Check that a finished layer may count for the tenant as well. Raises ``InstallFailed``."""
    quota = await _quota(application, tenant_id, key)
    if quota.more > 0 and quota.room < 0:
        await application.engine.layers.collect_layers(quota.unused, JUST_ASKED)
        quota = await _quota(application, tenant_id, key)
        if quota.room < 0:
            raise _refusal(quota, f"and these dependencies take {_gb(quota.more)} more")


async def limit_plan(application: Application, tenant_id: TenantId, plan: LayerPlan) -> LayerPlan:
    """Return the plan with the bytes that the tenant has left for it. Raises ``InstallFailed`` when there is no room.

    Layers that no builder of the tenant may run any more make room first.
    """
    quota = await _quota(application, tenant_id)
    if quota.unused and quota.room < quota.limit // 4:
        await application.engine.layers.collect_layers(quota.unused, JUST_ASKED)
        quota = await _quota(application, tenant_id)
    if quota.room < LEAST_ROOM:
        raise _refusal(quota, "so that there is no room for other ones")
    return replace(plan, limit_bytes=quota.room, quota_bytes=quota.limit)


async def _quota(application: Application, tenant_id: TenantId, key: str | None = None) -> LayerQuota:
    stored = await application.engine.layers.stored_layers()

    def load(uow: UnitOfWork) -> LayerQuota:
        tenant = uow.tenants.get(tenant_id)
        assert tenant is not None, "a builder's tenant is stored"
        own = uow.versions.layers(tenant_id)
        # Only what the tenant built may count although it runs it no more: unless another one does.
        built = [key for key, layer in stored.layers.items() if layer.tenant == tenant_id and key not in own]
        used = uow.versions.used_layers(built)
        counted = stored.counted(tenant_id, own, used)
        more = stored.layers[key].bytes if key is not None and key in stored.layers and key not in counted else 0
        unused = frozenset(one for one in counted if one not in own and one != key)
        set_limit = application.tenant_limits.of(tenant).layers
        limit = int(stored.total_bytes * DEFAULT_SHARE) if set_limit is None else int(set_limit * GB)
        return LayerQuota(limit, sum(counted.values()), unused, more)

    return await application.store.read(load)


def _refusal(quota: LayerQuota, why: str) -> InstallFailed:
    return InstallFailed(
        f"Your dependencies take {_gb(quota.counted)} of the {_gb(quota.limit)} that your layers may take, {why}. "
        "Delete builders that you no longer need (DELETE /api/v1/builders/{uuid}), or deploy with the same "
        "dependencies as another builder; the operator sets the limit (tenant.layers)."
    )


def _gb(size: int) -> str:
    return f"{size / GB:.2f} GB"
