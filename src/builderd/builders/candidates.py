"""Changes of a builder by services and the reconciler: its candidate, its status, its domains' release."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from typing import Any

from builderd.backups.model import RestoreKind, external_cause_of
from builderd.builders.model import Builder, Handover, Status
from builderd.core.addresses import shown
from builderd.core.errors import InvalidState, NotFound
from builderd.database.unit_of_work import UnitOfWork
from builderd.domains.model import Domain
from builderd.events.model import SYSTEM, Event
from builderd.money import service as spending
from builderd.money.model import Billing, Prices
from builderd.versions.model import Version, VersionStatus, scaled


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
        current = uow.versions.require(builder.id, builder.version)
        spending.bill(uow, prices, builder, current.settings.resources, Billing.STOPPED, now)
    disk = builder.candidate.disk if builder.candidate else None
    spare = (*builder.spare_disks, disk) if disk else builder.spare_disks
    if builder.scale:
        serving = uow.versions.require(builder.id, builder.version).settings
        builder = replace(builder, scale=scaled(builder.scale, serving.processes))
    return replace(builder, candidate=None, handover=None, spare_disks=spare)


def fail_candidate(uow: UnitOfWork, builder: Builder, prices: Prices, why: str, now: datetime) -> Builder:
    """Return the builder without its candidate, whose version fails for the reason ``why``.

    Used to stop or delete a builder in any state. The caller saves it.
    """
    if builder.candidate is None:
        return replace(builder, handover=None)
    version = uow.versions.require(builder.id, builder.candidate.version)
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
    version = uow.versions.require(builder.id, builder.version)
    reason = f"Version {version.number} was never started: version {successor} came after it."
    fail(uow, builder, version, InvalidState.code, reason, now)


def fail(uow: UnitOfWork, builder: Builder, version: Version, code: str, reason: str, now: datetime) -> None:
    """Mark the version as failed unless it has an outcome already. The event gets the reason's first line."""
    if version.status is not VersionStatus.PENDING:
        return
    uow.versions.save(replace(version, status=VersionStatus.FAILED, status_reason=reason, failure_code=code))
    what = reason.partition("\n")[0]
    record(uow, builder, "version.failed", SYSTEM, what, now, version=version.number, code=code)


def record(
    uow: UnitOfWork, builder: Builder, kind: str, actor: str, reason: str, now: datetime, **details: Any
) -> None:
    """Record an event of the builder."""
    uow.events.add(Event(builder.tenant_id, builder.id, now, kind, actor, reason, details))


def change(uow: UnitOfWork, builder: Builder, status: Status, reason: str, now: datetime) -> Builder:
    """Return the builder in its new status, not yet saved, and record the event.

    The caller saves it together with its other changes. The event's actor is the one who set the present desired state.
    An unchanged status records no event.
    """
    if status is not builder.status:
        changed = {"from": builder.status.value, "to": status.value}
        record(uow, builder, "builder.status", builder.cause.actor, reason, now, **changed)
    return replace(builder, status=status, status_reason=reason, updated_at=now)


def note_skipped(uow: UnitOfWork, builder: Builder, version: Version, now: datetime) -> None:
    """Record an event for each gate that this new version skips."""
    for gate, is_skipped in (("review", version.settings.skip_review), ("qa", version.settings.skip_qa)):
        if not is_skipped:
            continue
        actor, number = version.created_by, version.number
        record(uow, builder, "gate.skipped", actor, f"{gate} left out by {actor}", now, gate=gate, version=number)


def release(uow: UnitOfWork, domain: Domain, now: datetime) -> None:
    """End a claim. A proven one leaves a row that remembers whose host it was; its certificate is dropped.

    That row is due at once: the job takes the host from the proxy.
    """
    if domain.proven_at is None:
        uow.domains.delete(domain.id)
    else:
        uow.domains.save(replace(domain, released_at=now, certificate=None, fingerprint=None, next_try_at=now))


def release_all(uow: UnitOfWork, builder: Builder, now: datetime) -> None:
    """End all claims of a deleted builder."""
    for domain in uow.domains.of_builder(builder.id):
        release(uow, domain, now)
        note(uow, domain, "domain.removed", builder.cause.actor, "its builder was deleted", now)


def note(uow: UnitOfWork, domain: Domain, kind: str, actor: str, reason: str, now: datetime, **details: Any) -> None:
    """Record an event of the domain's builder."""
    told = {"host": domain.host, "name": shown(domain.host), **details}
    uow.events.add(Event(domain.tenant_id, domain.builder_id, now, kind, actor, reason, told))
