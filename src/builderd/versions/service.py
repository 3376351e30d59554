"""Deployments: a new version of a builder, by new code, new settings, or a rollback.

The reconciler prepares the version beside the serving one (``Builder.candidate``) and lets it take over. For a builder
that never was up, and for new settings of a stopped one, the version becomes the current one at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from builderd.application import Application
from builderd.builders import candidates
from builderd.builders import service as builders
from builderd.builders.model import Builder, Candidate, Cause, Desired, Handover, JobType, Status, Visibility
from builderd.builders.service import (
    Caller,
    check_auto_stop,
    check_engine,
    check_job_type,
    check_scale,
    check_settings,
    get,
    save_due,
    want_run,
)
from builderd.code.space import old_versions
from builderd.core.errors import InvalidState, NotFound, ValidationFailed
from builderd.core.ids import BuilderId, DiskId, new_id, new_secret
from builderd.database.unit_of_work import UnitOfWork
from builderd.events.model import SYSTEM
from builderd.money import admission
from builderd.money import service as spending
from builderd.money.model import Billing
from builderd.versions.model import SETTING_NAMES, Version, VersionSettings, VersionStatus, scaled

#: A version takes over within seconds.
RETRY_AFTER = 5
#: Why a waiting restore is cancelled: the caller's change replaces it.
ANOTHER = "{} deployed another version in the meantime"


@dataclass(frozen=True, slots=True)
class Change:
    """Requested changes to a builder; None leaves a field as it is.

    ``name`` and ``job_type`` may only repeat the present values. ``bundle_hash`` names files that are in the bundle
    store already. ``settings`` has some of the fields of ``VersionSettings``, and of its ``resources`` some fields.
    """

    name: str | None = None
    job_type: JobType | None = None
    bundle_hash: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    visibility: Visibility | None = None
    auto_stop_interval: int | None = None
    backup_interval_hours: int | None = None
    scale: Mapping[str, int] | None = None
    fresh: bool = False

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Change:
        """Return a change from fields by name: those of ``VersionSettings``, and the others. None: not given."""
        settings = {name: given[name] for name in SETTING_NAMES if given.get(name) is not None}
        others = {name: value for name, value in given.items() if name not in SETTING_NAMES}
        return cls(settings=settings, **others)


@dataclass(frozen=True, slots=True)
class Deployed:
    """Result of a change. ``version`` is the number that is being deployed, None without a new version."""

    builder: Builder
    version: int | None


#: States of a version whose app may have written to the disk.
WAS_UP = (VersionStatus.DEPLOYED, VersionStatus.DROPPED)
#: Fields that take effect at once, without a new version.
AT_ONCE = ("visibility", "auto_stop_interval", "backup_interval_hours")


def deploy(
    uow: UnitOfWork, application: Application, caller: Caller, builder_id: str, change: Change, now: datetime
) -> Deployed:
    """Begin a new version with new code, also of a stopped builder; it runs once it has taken over.

    Options that skip a gate do not pass from one version to the next, here and below. Raises ``NotFound``,
    ``InvalidState`` while a version takes over or the first one is being created, ``ValidationFailed``,
    ``EngineUnavailable``, ``QuotaExceeded`` and ``NoCapacity``.
    """
    builder = changeable(uow, application, caller, builder_id)
    base = _base(uow, builder)
    fixed = {"name": (builder.name, change.name), "job_type": (builder.job_type.value, change.job_type)}
    if errors := {
        name: [f"cannot be changed: it is {has!r}; leave it out"]
        for name, (has, wanted) in fixed.items()
        if wanted not in (None, has)
    }:
        raise ValidationFailed(errors)
    settings = _settings(base.settings, change)
    check_job_type(builder.job_type, settings)
    check_settings(uow, application, caller.tenant_id, settings)
    check_scale(settings, change.scale or {})
    _check_disk(base, settings)
    candidates.give_up_restore(uow, builder, ANOTHER.format(caller.actor))
    version = _next(uow, base, settings, caller, now, bundle_hash=change.bundle_hash or base.bundle_hash)
    if change.fresh:
        version = replace(version, fresh_since=version.number)
    return _launch(uow, application, builder, version, change=change)


def configure(
    uow: UnitOfWork, application: Application, caller: Caller, builder_id: str, change: Change, now: datetime
) -> Deployed:
    """Change settings of the same code: at once if the app is not affected, else by a new version.

    A stopped builder stays stopped, and uses them from its next start. Changes that take effect at once do so in any
    state; for the rest this raises as ``deploy`` does.
    """
    builder = get(uow, caller.tenant_id, builder_id, lock=True)
    base = _base(uow, builder)
    settings = _settings(base.settings, change)
    check_scale(settings, change.scale or {})
    if settings == base.settings.with_gates:
        changed = _at_once(builder, caller, change)
        if changed.further > builder.further:
            admission.admit_change(uow, application, builder, changed, now)
        return Deployed(save_due(uow, changed, now), None)
    _check_changeable(application, builder)
    check_settings(uow, application, caller.tenant_id, settings)
    _check_disk(base, settings)
    candidates.give_up_restore(uow, builder, ANOTHER.format(caller.actor))
    version = _next(uow, base, settings, caller, now)
    if builder.desired is Desired.STOPPED and builder.candidate is None:
        # The same release of the same code has run on this disk.
        released = base.released and settings.release == base.settings.release
        adopted = replace(version, released=released)
        return _adopt(uow, application, caller, _at_once(builder, caller, change), adopted, now)
    return _launch(uow, application, builder, version, change=change)


def roll_back(
    uow: UnitOfWork, application: Application, caller: Caller, builder_id: str, number: int, now: datetime
) -> Deployed:
    """Begin a new version with code and settings of an old one that was up once. Its disk does not shrink.

    Raises as ``deploy`` does, and ``InvalidState`` for a version that never was up.
    """
    builder = changeable(uow, application, caller, builder_id)
    base = _base(uow, builder)
    old = uow.versions.get(builder.id, number)
    if old is None or old.status is VersionStatus.DROPPED:
        raise NotFound(f"There is no version {number}: GET /api/v1/builders/{builder.id}/versions lists them.")
    if old.status is not VersionStatus.DEPLOYED:
        raise InvalidState(f"Version {number} never was up ({old.status}): choose one that is deployed.")
    disk = max(old.settings.resources.disk, base.settings.resources.disk)
    settings = replace(old.settings.with_gates, resources=replace(old.settings.resources, disk=disk))
    check_settings(uow, application, caller.tenant_id, settings)
    candidates.give_up_restore(uow, builder, ANOTHER.format(caller.actor))
    version = _next(uow, base, settings, caller, now, bundle_hash=old.bundle_hash)
    version = replace(version, rolled_back_to=number, fresh_since=old.fresh_since, adopted_port=old.adopted_port)
    return _launch(uow, application, builder, version)


def switch(
    uow: UnitOfWork,
    application: Application,
    caller: Caller,
    builder: Builder,
    disk: DiskId,
    code: Version,
    now: datetime,
) -> Deployed:
    """Begin a new version on a disk that was filled elsewhere, with code and settings of the version ``code``.

    The serving version is replaced without a trial; if the new one does not come up, the old one serves again on its
    own disk, and ``disk`` is removed. The builder must be locked and ``changeable``. Files on the disk beside those of
    its version stay.
    """
    version = _next(uow, _base(uow, builder), code.settings.with_gates, caller, now, bundle_hash=code.bundle_hash)
    version = replace(version, fresh_since=code.fresh_since, adopted_port=code.adopted_port)
    return _launch(uow, application, builder, version, disk=disk)


def renew_service_token(
    uow: UnitOfWork, application: Application, caller: Caller, builder_id: str, now: datetime
) -> Builder:
    """Replace the service token at once. A running app restarts with the new one while its preview pauses requests.

    Raises ``TakesOver`` while a release runs: it would be cut off, and run again.
    """
    builder = changeable(uow, application, caller, builder_id)
    if candidates.releases(uow, builder):
        raise candidates.TakesOver("A release command runs at this moment: try again.", retry_after=RETRY_AFTER)
    renewed = replace(builder, service_token=new_secret("bds"), updated_at=now)
    why = f"service token renewed by {caller.actor}"
    candidates.record(uow, builder, "builder.token_renewed", caller.actor, why, now)
    if builder.desired is Desired.RUNNING and builder.job_type.stays_up:
        reason = f"started again with a new service token by {caller.actor}"
        renewed = replace(renewed, generation=builder.generation + 1, cause=Cause(caller.actor, reason))
        renewed = replace(renewed, handover=Handover.AGAIN, asleep_since=None)
    return save_due(uow, renewed, now)


def list_of(uow: UnitOfWork, caller: Caller, builder_id: str) -> Sequence[Version]:
    """Return the kept versions, newest first. Raises ``NotFound``."""
    builder = get(uow, caller.tenant_id, builder_id)
    return [one for one in uow.versions.list(builder.id) if one.status is not VersionStatus.DROPPED]


def base(uow: UnitOfWork, caller: Caller, builder_id: str) -> Version:
    """Return the version that a change starts from: the desired one, up or not. Raises ``NotFound``."""
    return _base(uow, get(uow, caller.tenant_id, builder_id))


def changeable(uow: UnitOfWork, application: Application, caller: Caller, builder_id: str) -> Builder:
    """Return the builder, locked, if it can get another version. Raises as ``deploy`` does."""
    builder = get(uow, caller.tenant_id, builder_id, lock=True)
    _check_changeable(application, builder)
    return builder


def _check_changeable(application: Application, builder: Builder) -> None:
    check_engine(application)
    if builder.status is Status.CREATING and not builder.settled:
        raise InvalidState("The builder is still being created: wait until it runs, or delete it.")
    if builder.handover is not None:
        raise candidates.TakesOver("Another version takes over at this moment: try again.", retry_after=RETRY_AFTER)


def _base(uow: UnitOfWork, builder: Builder) -> Version:
    return uow.versions.require(builder.id, builder.candidate_version or builder.version)


def _check_disk(base: Version, settings: VersionSettings) -> None:
    has, wanted = base.settings.resources.disk, settings.resources.disk
    if wanted < has:
        raise InvalidState(
            f"The disk has {has:g} GB and cannot shrink to {wanted:g} GB: create a new builder for that."
        )


def _settings(settings: VersionSettings, change: Change) -> VersionSettings:
    given = dict(change.settings)
    if "port" in given:
        given["fixed_port"] = True
    resources = replace(settings.resources, **given.pop("resources", {}))
    return replace(settings.with_gates, resources=resources, **given).without_port()


def _at_once(builder: Builder, caller: Caller, change: Change) -> Builder:
    """Return the builder with the fields that take effect at once.

    A builder that must not idle any more is woken, since nobody may visit it.
    """
    given: dict[str, Any] = {name: value for name in AT_ONCE if (value := getattr(change, name)) is not None}
    changed = replace(builder, **given, scale={**builder.scale, **(change.scale or {})})
    check_auto_stop(changed.job_type, changed.auto_stop_interval)
    if change.visibility is not None:
        changed = _closed(changed)
    is_to_idle = changed.auto_stop_interval > 0 and not changed.further
    if changed.asleep_since is None or is_to_idle or changed.desired is not Desired.RUNNING:
        return changed
    reason = f"woken by {caller.actor}: it is to idle no more"
    return replace(changed, asleep_since=None, cause=Cause(caller.actor, reason))


def _closed(builder: Builder) -> Builder:
    """Return the builder with a candidate that makes no private preview public."""
    return replace(builder, candidate=replace(builder.candidate, opens=False) if builder.candidate else None)


def _next(
    uow: UnitOfWork,
    base: Version,
    settings: VersionSettings,
    caller: Caller,
    now: datetime,
    *,
    bundle_hash: str | None = None,
) -> Version:
    """Return the next version, not yet stored. Verdicts on the same code are kept, those on other code dropped."""
    newest = uow.versions.list(base.builder_id)[0]
    adopted = None if settings.fixed_port or settings.port != base.settings.port else base.adopted_port
    return Version(
        builder_id=base.builder_id,
        number=newest.number + 1,
        bundle_hash=bundle_hash or base.bundle_hash,
        settings=settings,
        created_by=caller.actor,
        created_at=now,
        fresh_since=base.fresh_since,
        adopted_port=adopted,
    )


def _launch(
    uow: UnitOfWork,
    application: Application,
    builder: Builder,
    version: Version,
    *,
    disk: DiskId | None = None,
    change: Change | None = None,
) -> Deployed:
    """Begin the deployment of a new version beside the serving one, in place of another candidate.

    Fields of ``change`` that the app need not know take effect at once, with one exception: a private preview becomes
    public only with the new version or a later one, since the serving version, which stays if the new one fails, was
    not released. ``change`` is None for a rollback to older code.
    """
    caller, now = Caller(builder.tenant_id, version.created_by), version.created_at
    was_up = any(one.status in WAS_UP for one in uow.versions.list(builder.id))
    at_once = not was_up and disk is None
    stored, before = builder, builder.visibility
    builder = _closed(builder) if change is None else _at_once(builder, caller, change)
    opens = builder.visibility is Visibility.PUBLIC or (builder.candidate is not None and builder.candidate.opens)
    opens = opens and before is Visibility.PRIVATE and not at_once
    if opens:
        builder = replace(builder, visibility=before)
    if at_once:
        wanted = replace(builder, version=version.number, desired=Desired.RUNNING, disk_released_at=None)
    else:
        wanted = replace(builder, candidate=Candidate(version.number, disk, opens))
    wanted = _with_processes(wanted, version, at_once=at_once)
    admission.admit_change(uow, application, stored, wanted, now, version=version)
    uow.versions.add(version)
    _drop_old(uow, application, builder)
    _created(uow, builder, version, now)
    candidates.note_skipped(uow, builder, version, now)
    if at_once:
        candidates.superseded(uow, builder, version.number, now)
        replaced = replace(builder, version=version.number, scale=wanted.scale)
        return Deployed(
            want_run(uow, application, replaced, caller, f"version {version.number} deployed", now), version.number
        )
    if builder.candidate is not None:
        why = f"version {version.number} came after it"
        builder = candidates.fail_candidate(uow, builder, application.prices, why, now)
    beside = replace(builder, candidate=Candidate(version.number, disk, opens))
    return Deployed(save_due(uow, _with_processes(beside, version, at_once=False), now), version.number)


def _with_processes(builder: Builder, version: Version, *, at_once: bool) -> Builder:
    """Return the builder with a scale for each process of a new version, and until that takes over for its present."""
    present = {} if at_once else builder.scale
    return replace(builder, scale={**present, **scaled(builder.scale, version.settings.processes)})


def _drop_old(uow: UnitOfWork, application: Application, builder: Builder) -> None:
    """Drop versions beyond the last ``kept_versions``, never the current one; the sweep removes their files."""
    for old in old_versions(uow, builder.id, builder.version, application.limits.kept_versions):
        uow.versions.save(replace(old, status=VersionStatus.DROPPED))


def _adopt(
    uow: UnitOfWork, application: Application, caller: Caller, builder: Builder, version: Version, now: datetime
) -> Deployed:
    """Make the version the current one of a stopped builder: it runs from the next start, its disk is billed at once.

    A builder that is still stopping is billed for the new disk once it has ended.
    """
    resources = version.settings.resources
    adopted = replace(builder, version=version.number)
    admission.admit_change(uow, application, builder, adopted, now, version=version)
    paid = uow.ledger.current(builder.id)
    if paid is not None and paid.billing is Billing.STOPPED:
        spending.bill(uow, application.prices, builder, resources, Billing.STOPPED, now)
    candidates.superseded(uow, builder, version.number, now)
    uow.versions.add(version)
    _created(uow, builder, version, now)
    _drop_old(uow, application, builder)
    return Deployed(save_due(uow, adopted, now), None)


def _created(uow: UnitOfWork, builder: Builder, version: Version, now: datetime) -> None:
    what = f"rolls back to version {version.rolled_back_to}" if version.rolled_back_to else "made"
    reason = f"version {version.number} {what} by {version.created_by}"
    candidates.record(uow, builder, "version.created", version.created_by, reason, now, version=version.number)


def release(uow: UnitOfWork, builder_id: BuilderId, now: datetime) -> bool:
    """Give the builder's disk back, end its bill, and record the event; return False if it is not to be given back."""
    builder = uow.builders.get(builder_id, lock=True)
    if builder is None or builder.status is not Status.FAILED or builder.desired is not Desired.STOPPED:
        return False
    # An open sandbox uses the disk, and its end is recorded in the ledger.
    if builder.candidate is not None or uow.sandboxes.all_open(builder.id):
        return False
    if builder.disk_released_at is not None or has_data(uow, builder):
        return False
    version = uow.versions.require(builder.id, builder.version)
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
    candidates.record(uow, builder, "disk.released", SYSTEM, reason, now, disk=builder.disk, gb=size)
    return True


def has_data(uow: UnitOfWork, builder: Builder) -> bool:
    """Return True if its disk may have more than the code: it was up, was restored, or got files from a caller."""
    return builder.disk_has_data or any(one.status in WAS_UP for one in uow.versions.list(builder.id))


async def remove(application: Application, caller: Caller, builder_id: str) -> tuple[int, int]:
    """Remove the kept results of the builder's versions; return their number and bytes. Raises ``NotFound``.

    No version loses what is on its disk; one that needs its result on another disk, such as by a rollback, is built
    again.
    """

    def load(uow: UnitOfWork) -> frozenset[str]:
        builder = builders.get(uow, caller.tenant_id, builder_id)
        return frozenset(version.build_key for version in uow.versions.list(builder.id) if version.build_key)

    keys = await application.store.read(load)
    if not keys:
        return 0, 0
    stored = (await application.engine.layers.stored_layers(keys)).layers
    removed = await application.engine.layers.collect_layers(stored.keys(), 0)
    return len(removed), sum(stored[key].bytes for key in removed)
