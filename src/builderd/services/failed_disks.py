"""Disks of builders that failed and never were up: given back after a while, since they hold nothing but the code.

The code is in the bundle, from which the next start makes a new disk.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from builderd.domain.builders import Builder, Desired, Status
from builderd.domain.events import SYSTEM, Event
from builderd.domain.ids import BuilderId, DiskId, new_id
from builderd.services.deployments import WAS_UP
from builderd.store import UnitOfWork


def release(uow: UnitOfWork, builder_id: BuilderId, now: datetime) -> bool:
    """Give the builder's disk back, end its bill, and record the event; return False if it is not to be given back."""
    builder = uow.builders.get(builder_id, lock=True)
    if builder is None or not _is_over(uow, builder):
        return False
    version = uow.versions.get(builder.id, builder.version)
    assert version is not None, "a builder's current version is always stored"
    size = version.settings.resources.disk
    if version.released:
        # Its release has prepared the disk that goes.
        uow.versions.save(replace(version, released=False))
    uow.ledger.close(builder.id, now)
    uow.tenants.make_spending_due(builder.tenant_id, now)
    spare = (*builder.spare_disks, builder.disk)
    uow.builders.save(
        replace(builder, disk=DiskId(new_id()), disk_is_made=False, spare_disks=spare, disk_released_at=now)
    )
    uow.builders.make_due(builder.id, now)
    reason = f"its disk of {size:g} GB was given back: it failed and never was up; its next start makes a new one"
    details = {"disk": builder.disk, "gb": size}
    uow.events.add(Event(builder.tenant_id, builder.id, now, "disk.released", SYSTEM, reason, details))
    return True


def holds_data(uow: UnitOfWork, builder: Builder) -> bool:
    """Return True if its disk may hold more than the code: it was up, was restored, or got files from a caller."""
    return builder.disk_has_data or any(one.status in WAS_UP for one in uow.versions.list(builder.id))


def _is_over(uow: UnitOfWork, builder: Builder) -> bool:
    """Return True if it failed, nothing is wanted of it or runs of it, and its disk holds nothing but the code."""
    if builder.status is not Status.FAILED or builder.desired is not Desired.STOPPED or builder.candidate is not None:
        return False
    if uow.sandboxes.open_of(builder.id) is not None:
        return False  # it uses the disk, and its end is recorded in the ledger
    return builder.disk_released_at is None and not holds_data(uow, builder)
