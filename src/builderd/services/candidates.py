"""Candidates: the version that is deployed beside the one that serves, and how it is given up."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from builderd.domain.backups import RestoreKind, external_cause_of
from builderd.domain.builders import Builder, Handover
from builderd.domain.errors import InvalidState, NotFound
from builderd.domain.events import SYSTEM, Event
from builderd.domain.prices import Billing, Prices
from builderd.domain.versions import Version, VersionStatus
from builderd.ports.store import UnitOfWork
from builderd.services import ledger


class TakesOver(InvalidState):
    """A version takes over at this moment; whoever waits for that (``outcomes.when_free``) may try again."""


def without(uow: UnitOfWork, builder: Builder, prices: Prices, now: datetime) -> Builder:
    """The builder without its candidate, whose disk is used and paid no more. The caller saves it."""
    paid = uow.ledger.current(builder.id)
    if builder.handover is Handover.FORWARD and paid is not None and paid.billing is Billing.STOPPED:
        current = uow.versions.get(builder.id, builder.version)
        assert current is not None, "a builder's versions are always stored"
        ledger.bill(uow, prices, builder, current.settings.resources, Billing.STOPPED, now)
    disks = (builder.candidate_disk,) if builder.candidate_disk is not None else ()
    spare = (*builder.spare_disks, *disks)
    return replace(builder, candidate=None, candidate_disk=None, handover=None, spare_disks=spare, opens_with=None)


def withdraw(uow: UnitOfWork, builder: Builder, prices: Prices, why: str, now: datetime) -> Builder:
    """The same, and its version has failed for this reason, because something else is wanted by now.

    For whoever wants a builder stopped or deleted, whatever it is at. The caller saves it.
    """
    if builder.candidate is None:
        return replace(builder, handover=None)
    version = uow.versions.get(builder.id, builder.candidate)
    assert version is not None, "a builder's versions are always stored"
    fail(uow, builder, version, InvalidState.code, f"Version {version.number} was given up: {why}.", now)
    return without(uow, builder, prices, now)


def give_up_restore(
    uow: UnitOfWork, builder: Builder, why: str, kind: type[InvalidState | NotFound] = InvalidState
) -> None:
    """A restore into this builder that is under way does not become a candidate any more. The builder must be locked.

    Whoever carries it out removes what was made for it; whoever waits for it is told by an error of this ``kind``.
    """
    data = {"uuid": builder.id}
    for restore in uow.restores.open_of(builder.id):
        if restore.kind is RestoreKind.SAME and not restore.error:
            error = kind(f"The restore was given up: {why}.", data=data)
            uow.restores.save(replace(restore, error=error.message, hindrance=external_cause_of(error)))


def superseded(uow: UnitOfWork, builder: Builder, successor: int, now: datetime) -> None:
    """The current version makes way for its successor; should it never have been started, it never will be."""
    version = uow.versions.get(builder.id, builder.version)
    assert version is not None, "a builder's versions are always stored"
    reason = f"Version {version.number} was never started: version {successor} came after it."
    fail(uow, builder, version, InvalidState.code, reason, now)


def fail(uow: UnitOfWork, builder: Builder, version: Version, code: str, reason: str, now: datetime) -> None:
    """The version has failed, unless it has its outcome already. The reason's first line goes into the event."""
    if version.status is not VersionStatus.PENDING:
        return
    uow.versions.save(replace(version, status=VersionStatus.FAILED, status_reason=reason, failure_code=code))
    details = {"version": version.number, "code": code}
    what = reason.partition("\n")[0]
    uow.events.add(Event(builder.tenant_id, builder.id, now, "version.failed", SYSTEM, what, details))
