"""Layer quota: how many bytes of dependency layers a tenant may have in the store."""

from __future__ import annotations

from dataclasses import dataclass, replace

from builderd.domain.errors import InstallFailed
from builderd.domain.ids import TenantId
from builderd.domain.layers import LayerPlan, StoredLayers
from builderd.domain.resources import GB
from builderd.domain.tokens import Tenant
from builderd.services.application import Application
from builderd.store import UnitOfWork

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
        quota = await _without_unused(application, tenant_id, key, quota)
        if quota.room < 0:
            raise _refusal(quota, f"and these dependencies take {_gb(quota.more)} more")


async def limit_plan(application: Application, tenant_id: TenantId, plan: LayerPlan) -> LayerPlan:
    """Return the plan with the bytes that the tenant has left for it. Raises ``InstallFailed`` when there is no room.

    Layers that no builder of the tenant may run any more make room first.
    """
    quota = await _quota(application, tenant_id)
    if quota.unused and quota.room < quota.limit // 4:
        quota = await _without_unused(application, tenant_id, None, quota)
    if quota.room < LEAST_ROOM:
        raise _refusal(quota, "so that there is no room for other ones")
    return replace(plan, limit_bytes=quota.room, quota_bytes=quota.limit)


async def _without_unused(
    application: Application, tenant_id: TenantId, key: str | None, quota: LayerQuota
) -> LayerQuota:
    await application.engine.layers.collect_layers(quota.unused, JUST_ASKED)
    return await _quota(application, tenant_id, key)


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
        return LayerQuota(_limit(application, tenant, stored), sum(counted.values()), unused, more)

    return await application.store.read(load)


def _limit(application: Application, tenant: Tenant, stored: StoredLayers) -> int:
    set_limit = application.tenant_limits.of(tenant).layers
    return int(stored.total_bytes * DEFAULT_SHARE) if set_limit is None else int(set_limit * GB)


def _refusal(quota: LayerQuota, why: str) -> InstallFailed:
    return InstallFailed(
        f"Your dependencies take {_gb(quota.counted)} of the {_gb(quota.limit)} that your layers may take, {why}. "
        "Delete builders that you no longer need (DELETE /api/v1/builders/{uuid}), or deploy with the same "
        "dependencies as another builder; the operator sets the limit (tenant.layers)."
    )


def _gb(size: int) -> str:
    return f"{size / GB:.2f} GB"
