"""Inventory: the resources that each builder uses."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from builderd.domain.builders import Builder
from builderd.domain.inventory import BuilderStorage
from builderd.domain.versions import NO_LAYER, Version, VersionStatus
from builderd.store import UnitOfWork


def users(uow: UnitOfWork) -> Sequence[BuilderStorage]:
    """Return all builders that are not deleted, by tenant and name."""
    shown = [_user(uow, builder) for builder in uow.builders.get_all(uow.builders.ids()).values()]
    return sorted(shown, key=lambda user: (user.tenant, user.name))


def used_bundles(uow: UnitOfWork, bundles: Collection[str]) -> frozenset[str]:
    """Return the bundles among these that a version refers to."""
    return frozenset(uow.versions.used_bundles(bundles))


def _user(uow: UnitOfWork, builder: Builder) -> BuilderStorage:
    tenant = uow.tenants.get(builder.tenant_id)
    kept = [one for one in uow.versions.list(builder.id) if one.status is not VersionStatus.DROPPED]
    current = next((one for one in kept if one.number == builder.version), None)
    return BuilderStorage(
        tenant=tenant.name if tenant else builder.tenant_id,
        id=builder.id,
        name=builder.name,
        status=builder.status.value,
        version=builder.version,
        versions=len(kept),
        disks=builder.disks,
        layer=_layer(current) if current else None,
        layers=frozenset(key for one in kept if (key := _layer(one)) is not None),
        bundles=frozenset(one.bundle_hash for one in kept),
    )


def _layer(version: Version) -> str | None:
    return None if version.layer_key in (None, NO_LAYER) else version.layer_key
