"""Present builders in the shape of the HTTP contract."""

from __future__ import annotations

from builderd.domain.backups import Backup, BackupStatus
from builderd.domain.builders import Builder
from builderd.domain.prices import Cost
from builderd.schemas.v1 import builders as wire
from builderd.schemas.v1.settings import shown_settings
from builderd.services import builders
from builderd.services.application import Application

#: Enough of a service token to tell it from another, too little to use it.
SHOWN_END = 4


def present_builder(view: builders.BuilderView, *, with_token: bool) -> wire.Builder:
    """Return the builder in the contract's shape; its service token in full only ``with_token``."""
    builder = view.builder
    return wire.Builder(
        uuid=builder.id,
        name=builder.name,
        status=builder.status,
        preview_url=view.preview_url,
        service_token=shown_token(builder.service_token, in_full=with_token),
        **shown_settings(view.version.settings, wire.Builder),
        job_type=builder.job_type,
        visibility=builder.visibility,
        auto_stop_interval=builder.auto_stop_interval,
        backup_interval_hours=builder.backup_interval_hours,
        needs_restart=view.needs_restart,
        review_passed=view.review_passed,
        qa_passed=view.version.qa_passed,
        status_reason=builder.status_reason,
        version=builder.version,
        exit_code=builder.exit_code,
        cost=present_cost(view.cost),
        created_at=builder.created_at,
        updated_at=builder.updated_at,
        last_active_at=builder.last_active_at,
        last_backup_at=view.last_good_backup.created_at if view.last_good_backup else None,
        last_backup_error=_error(view.last_backup),
        disk_released_at=builder.disk_released_at,
        member=builder.location,
    )


def shown_token(service_token: str, *, in_full: bool) -> str:
    """Return the service token, or its end alone."""
    return service_token if in_full else f"…{service_token[-SHOWN_END:]}"


def _error(backup: Backup | None) -> str | None:
    """Return why the last backup failed, or what damage was found in it since."""
    if backup is None or backup.is_open:
        return None
    return (backup.error if backup.status is BackupStatus.FAILED else backup.fault) or None


def present_cost(cost: Cost) -> wire.Cost:
    """Return the amounts as JSON numbers."""
    return wire.Cost(
        currency=cost.currency,
        hourly_rate=float(cost.hourly_rate),
        runtime_hours=float(cost.runtime_hours),
        cost=float(cost.cost),
    )


async def read_builder(application: Application, builder: Builder, *, with_token: bool) -> wire.Builder:
    """Return the builder as it is stored now, in the contract's shape."""
    return present_builder(await read_view(application, builder), with_token=with_token)


async def read_view(application: Application, builder: Builder) -> builders.BuilderView:
    """Return the view of the builder, with its version and its costs as they are stored now."""
    now = application.clock.now()
    return await application.store.read(lambda uow: builders.view(uow, application, builder, now))
