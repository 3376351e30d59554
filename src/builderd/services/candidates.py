"""Candidates: the version that is deployed beside the serving one, and its removal."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from builderd.domain.backups import RestoreKind, external_cause_of
from builderd.domain.builders import Builder, Handover
from builderd.domain.errors import InvalidState, NotFound
from builderd.domain.events import SYSTEM, Event
from builderd.domain.prices import Billing, Prices
from builderd.domain.versions import Version, VersionStatus
from builderd.services import ledger
from builderd.store import UnitOfWork


class TakesOver(InvalidState):
    """Raised while a version takes over or releases; wait with ``outcomes.after_take_over`` and try again."""


def releases(uow: UnitOfWork, builder: Builder) -> bool:
    """Return True while a release command of the builder runs or is about to."""
    sandbox = uow.sandboxes.open_of(builder.id)
    return sandbox is not None and sandbox.release


def remove_candidate(uow: UnitOfWork, builder: Builder, prices: Prices, now: datetime) -> Builder:
    """Return the builder without its candidate, whose disk is released and no longer billed. The caller saves it."""
    paid = uow.ledger.current(builder.id)
    if builder.handover is Handover.FORWARD and paid is not None and paid.billing is Billing.STOPPED:
        current = uow.versions.get(builder.id, builder.version)
        assert current is not None, "a builder's versions are always stored"
        ledger.bill(uow, prices, builder, current.settings.resources, Billing.STOPPED, now)
    disk = builder.candidate.disk if builder.candidate else None
    spare = (*builder.spare_disks, disk) if disk else builder.spare_disks
    return replace(builder, candidate=None, handover=None, spare_disks=spare)


def fail_candidate(uow: UnitOfWork, builder: Builder, prices: Prices, why: str, now: datetime) -> Builder:
    """Return the builder without its candidate, whose version fails for the reason ``why``.

    Used to stop or delete a builder in any state. The caller saves it.
    """
    if builder.candidate is None:
        return replace(builder, handover=None)
    version = uow.versions.get(builder.id, builder.candidate.version)
    assert version is not None, "a builder's versions are always stored"
    fail(uow, builder, version, InvalidState.code, f"Version {version.number} was given up: {why}.", now)
    return remove_candidate(uow, builder, prices, now)


def give_up_restore(
    uow: UnitOfWork, builder: Builder, why: str, kind: type[InvalidState | NotFound] = InvalidState
) -> None:
    """Cancel restores into this builder before they become candidates. The builder must be locked.

    The backup schedule removes what was made for them; waiting calls get an error of this ``kind``.
    """
    data = {"uuid": builder.id}
    for restore in uow.restores.open_of(builder.id):
        if restore.kind is RestoreKind.SAME and not restore.error:
            error = kind(f"The restore was given up: {why}.", data=data)
            uow.restores.save(replace(restore, error=error.message, hindrance=external_cause_of(error)))


def superseded(uow: UnitOfWork, builder: Builder, successor: int, now: datetime) -> None:
    """Fail the current version if it was never started: its successor replaces it."""
    version = uow.versions.get(builder.id, builder.version)
    assert version is not None, "a builder's versions are always stored"
    reason = f"Version {version.number} was never started: version {successor} came after it."
    fail(uow, builder, version, InvalidState.code, reason, now)


def fail(uow: UnitOfWork, builder: Builder, version: Version, code: str, reason: str, now: datetime) -> None:
    """Mark the version as failed unless it has an outcome already. The event gets the reason's first line."""
    if version.status is not VersionStatus.PENDING:
        return
    uow.versions.save(replace(version, status=VersionStatus.FAILED, status_reason=reason, failure_code=code))
    details = {"version": version.number, "code": code}
    what = reason.partition("\n")[0]
    uow.events.add(Event(builder.tenant_id, builder.id, now, "version.failed", SYSTEM, what, details))
