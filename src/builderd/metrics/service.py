"""Metrics: the usage of one builder, now and in the last hours; the inventory of stored data of all builders."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from builderd.application import Application
from builderd.builders import service as builders
from builderd.builders.model import Builder
from builderd.core.ids import TenantId
from builderd.core.resources import Resources
from builderd.database.unit_of_work import UnitOfWork
from builderd.engine.inventory import BuilderStorage
from builderd.metrics.model import Usage, UsageSample, resample, start_of
from builderd.versions.model import VersionStatus


@dataclass(frozen=True, slots=True)
class Report:
    """``now`` is None for a builder that does not run here.

    ``steps``: (start, usage), oldest first; the last one is incomplete.
    """

    now: UsageSample | None
    limits: Resources
    step: timedelta
    steps: Sequence[tuple[datetime, Usage]]


def report(
    uow: UnitOfWork, application: Application, tenant_id: TenantId, builder_id: str, span: timedelta, step: timedelta
) -> Report:
    """Return the usage in the last ``span``, in steps; both are multiples of ``domain.metrics.STEP``.

    Raises ``NotFound``.
    """
    builder = builders.get(uow, tenant_id, builder_id)
    version = uow.versions.require(builder.id, builder.version)
    count = -(-span // step)
    begin = start_of(application.clock.now(), step) - (count - 1) * step
    steps = resample(uow.metrics.of_builder(builder.id, begin), begin, step, count)
    return Report(application.usage.get(builder.id), version.settings.resources, step, steps)


def users(uow: UnitOfWork) -> Sequence[BuilderStorage]:
    """Return all builders that are not deleted, by tenant and name."""
    found = [_user(uow, builder) for builder in uow.builders.get_all(uow.builders.ids()).values()]
    return sorted(found, key=lambda user: (user.tenant, user.name))


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
        layer=(current.layer_key or None) if current else None,
        layers=frozenset(one.layer_key for one in kept if one.layer_key),
        bundles=frozenset(one.bundle_hash for one in kept),
    )
