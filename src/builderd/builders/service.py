"""Builders: create and list them, and set their desired state. The reconciler acts on it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from builderd.application import Application
from builderd.backups.model import Backup, BackupStatus
from builderd.builders import candidates, outcomes, processes, uses
from builderd.builders.model import Builder, Cause, Desired, JobType, Status, StopKind, Visibility, auto_stop_error
from builderd.builders.store import BuilderQuery
from builderd.core.errors import (
    EngineUnavailable,
    InvalidState,
    NoCapacity,
    NotFound,
    RecordDamaged,
    ValidationFailed,
)
from builderd.core.ids import BuilderId, DiskId, TenantId, TokenId, is_id, new_id, new_secret
from builderd.core.resources import allocation_of
from builderd.credentials import service as credentials
from builderd.database.unit_of_work import UnitOfWork
from builderd.money import admission
from builderd.money import service as spending
from builderd.money.model import Cost, Sum
from builderd.previews.model import preview_host
from builderd.tokens.model import Token
from builderd.versions.model import (
    Protocol,
    Version,
    VersionSettings,
    VersionStatus,
    env_size_error,
    scale_error,
    scaled,
)


@dataclass(frozen=True, slots=True)
class Caller:
    """Caller of the API: its tenant, and the actor as events name it (``token <name>``).

    ``token_id`` and ``expires_at`` are those of its token, None for the service itself.
    """

    tenant_id: TenantId
    actor: str
    token_id: TokenId | None = None
    expires_at: datetime | None = None

    @classmethod
    def of(cls, token: Token, program: str = "") -> Caller:
        """Return the caller with this token; ``program`` is the one that calls, "" without a name."""
        actor = f"token {token.name}{f' ({program})' if program else ''}"
        return cls(token.tenant_id, actor, token.id, token.expires_at)

    def end(self, wanted: datetime) -> datetime:
        """Return until when a thing that works without the token lasts: no longer than the token."""
        return wanted if self.expires_at is None else min(wanted, self.expires_at)


@dataclass(frozen=True, slots=True)
class NewBuilder:
    """A request whose fields have passed the domain's rules. The bundle is in the store already.

    ``disk`` is one that a restore has filled; None: an empty one.
    """

    name: str
    bundle_hash: str
    settings: VersionSettings
    job_type: JobType = JobType.ALWAYS_ON
    visibility: Visibility = Visibility.PUBLIC
    auto_stop_interval: int = 0
    backup_interval_hours: int = 0
    disk: DiskId | None = None
    scale: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class BuilderView:
    """A builder with its current version, its preview's URL and its costs up to now.

    ``needs_restart``: it runs with credentials that have changed since. ``last_backup`` is the last one that was tried,
    ``last_good_backup`` the last one that succeeded.
    """

    builder: Builder
    version: Version
    preview_url: str
    cost: Cost
    needs_restart: bool
    review_passed: bool | None
    domains: Sequence[str] = ()
    last_backup: Backup | None = None
    last_good_backup: Backup | None = None
    processes: tuple[processes.ProcessView, ...] = ()


def create(uow: UnitOfWork, application: Application, caller: Caller, new: NewBuilder, now: datetime) -> Builder:
    """Record the builder and its first version. It replaces the caller's own of that name that failed to be created.

    Raises ``NameTaken``, ``QuotaExceeded``, ``NoCapacity``, or ``ValidationFailed`` when this service lacks what was
    asked for.
    """
    check_engine(application)
    check_auto_stop(new.job_type, new.auto_stop_interval)
    check_job_type(new.job_type, new.settings)
    check_settings(uow, application, caller.tenant_id, new.settings)
    has_replaced = _replace_failed(uow, application, caller, new.name, now)
    check_scale(new.settings, new.scale)
    scale = scaled(new.scale, new.settings.processes)
    wanted = allocation_of(new.settings.resources, running=True, further=sum(scale.values()))
    admission.admit(uow, application, caller.tenant_id, wanted, now)
    builder_id = BuilderId(new_id())
    builder = Builder(
        id=builder_id,
        tenant_id=caller.tenant_id,
        name=new.name,
        job_type=new.job_type,
        visibility=new.visibility,
        service_token=new_secret("bds"),
        host=preview_host(new.name, builder_id, application.preview_domain.domain),
        version=1,
        disk=new.disk or DiskId(new_id()),
        disk_has_data=new.disk is not None,
        disk_is_made=new.disk is not None,
        created_at=now,
        updated_at=now,
        auto_stop_interval=new.auto_stop_interval,
        backup_interval_hours=new.backup_interval_hours,
        scale=scale,
        cause=Cause(caller.actor, f"created by {caller.actor}"),
        member=application.member,
    )
    uow.builders.add(builder)
    version = Version(
        builder_id=builder.id,
        number=builder.version,
        bundle_hash=new.bundle_hash,
        settings=new.settings,
        created_by=caller.actor,
        created_at=now,
    )
    uow.versions.add(version)
    _record(uow, builder, "builder.created", now, name=new.name)
    candidates.note_skipped(uow, builder, version, now)
    uow.builders.make_due(builder.id, now)
    # Last: what fails before reserves nothing. The store counts what the sum of all disks does not, such as layers.
    # The space of a disk that a restore has filled is its own already, that of a replaced builder comes back soon.
    if new.disk is None and not has_replaced:
        application.engine.disks.reserve_disk(builder.disk, new.settings.resources.disk_bytes)
    return builder


def _replace_failed(uow: UnitOfWork, application: Application, caller: Caller, name: str, now: datetime) -> bool:
    """Delete a builder of that name that the caller created and that never came up, so that a retry needs no delete.

    Return True if there was one. One whose disk has data of others than its code stays.
    """
    named = uow.builders.by_name(caller.tenant_id, name)
    other = uow.builders.get(named.id, lock=True) if named is not None else None
    if other is None or other.status is not Status.FAILED or other.desired is Desired.DELETED or other.disk_has_data:
        return False
    versions = uow.versions.list(other.id)
    is_own = versions[-1].created_by == caller.actor
    if not is_own or any(version.status is not VersionStatus.FAILED for version in versions):
        return False
    delete(uow, application, caller, other.id, now)
    return True


def get(uow: UnitOfWork, tenant_id: TenantId, builder_id: str, *, lock: bool = False) -> Builder:
    """Return the live builder. Raises ``NotFound`` alike for a foreign, deleted, unknown or malformed id."""
    try:
        builder = uow.builders.get(BuilderId(builder_id), lock=lock) if is_id(builder_id) else None
    except RecordDamaged:
        if uow.builders.owner_of_live(BuilderId(builder_id)) != tenant_id:
            raise missing() from None
        raise
    if builder is None or builder.tenant_id != tenant_id or builder.desired is Desired.DELETED:
        raise missing()
    return builder


def missing() -> NotFound:
    """Return the error for a builder that the caller does not have."""
    return NotFound("There is no builder of this uuid: list yours with GET /api/v1/builders.")


def list_page(
    uow: UnitOfWork, application: Application, tenant_id: TenantId, query: BuilderQuery, now: datetime
) -> tuple[Sequence[BuilderView], int]:
    """Return one page of the tenant's live builders, and their total number."""
    found = uow.builder_lists.page(tenant_id, query)
    return _views(uow, application, found, now), uow.builder_lists.count(tenant_id, query)


def start(uow: UnitOfWork, application: Application, caller: Caller, builder_id: str, now: datetime) -> Builder:
    """Set the desired state running; if it is running already, record a use, which wakes a sleeping builder.

    Raises ``QuotaExceeded`` and ``NoCapacity``.
    """
    builder = get(uow, caller.tenant_id, builder_id, lock=True)
    if builder.desired is Desired.RUNNING:
        return uses.request_wake(uow, application, builder, uses.User(caller.actor, f"started by {caller.actor}"), now)
    return want_run(uow, application, builder, caller, "started", now)


def restart(uow: UnitOfWork, application: Application, caller: Caller, builder_id: str, now: datetime) -> Builder:
    """Begin a new generation, whether or not the builder runs.

    Raises ``InvalidState`` while it is being created, ``QuotaExceeded`` and ``NoCapacity``.
    """
    builder = get(uow, caller.tenant_id, builder_id, lock=True)
    if builder.status is Status.CREATING and not builder.settled:
        raise InvalidState("The builder is still being created: wait until it runs, or delete it.")
    wanted = want_run(uow, application, builder, caller, "restarted", now)
    if builder.status is Status.RUNNING:
        # The status does not change, so no other event names the caller.
        _record(uow, wanted, "builder.restarting", now)
    return wanted


def restart_process(
    uow: UnitOfWork, application: Application, caller: Caller, builder_id: str, now: datetime, *, process: str
) -> Builder:
    """Have all sandboxes of one process replaced, also one that was given up; the others go on.

    Raises ``NotFound``, also for a process that the app does not have, and ``InvalidState`` unless the app runs.
    """
    builder = get(uow, caller.tenant_id, builder_id, lock=True)
    stored = processes.stored_name(uow, builder, process)
    if builder.desired is not Desired.RUNNING or builder.status is not Status.RUNNING or builder.handover is not None:
        raise InvalidState(f"The builder is {builder.status} or changes its version: wait, or start it as a whole.")
    uow.sandboxes.mark_replaced(builder.id, builder.generation, stored)
    reason = f"{process} restarted by {caller.actor}"
    candidates.record(uow, builder, "process.restarting", caller.actor, reason, now, process=process)
    return save_due(uow, builder, now)


def stop(uow: UnitOfWork, application: Application, caller: Caller, builder_id: str, now: datetime) -> Builder:
    """Set the desired state stopped, and cancel restores that would start it later.

    If it is stopped already, this only keeps visitors from waking it.
    """
    builder = get(uow, caller.tenant_id, builder_id, lock=True)
    why = f"the builder was stopped by {caller.actor}"
    candidates.give_up_restore(uow, builder, why)
    if builder.desired is Desired.STOPPED and builder.stop_kind is not StopKind.IDLE and builder.candidate is None:
        return builder
    builder = candidates.fail_candidate(uow, builder, application.prices, why, now)
    stopped = replace(_with_desired(builder, Desired.STOPPED, "stopped", caller), stop_kind=StopKind.PERSON)
    if builder.status is Status.STOPPED and builder.settled:
        stopped = replace(stopped, status_reason=stopped.cause.reason)
    return save_due(uow, stopped, now)


def delete(uow: UnitOfWork, application: Application, caller: Caller, builder_id: str, now: datetime) -> Builder:
    """Delete the builder, also one whose record is damaged: it leaves all lists at once, and its name is free."""
    try:
        return _delete(uow, application, caller, builder_id, now)
    except RecordDamaged:
        uow.builders.replace_undecodable(BuilderId(builder_id), now)
        return _delete(uow, application, caller, builder_id, now)


def _delete(uow: UnitOfWork, application: Application, caller: Caller, builder_id: str, now: datetime) -> Builder:
    builder = get(uow, caller.tenant_id, builder_id, lock=True)
    # Raises now what the answer, which shows its version, would raise later.
    uow.versions.get(builder.id, builder.version)
    why = f"the builder was deleted by {caller.actor}"
    candidates.give_up_restore(uow, builder, why, NotFound)
    builder = candidates.fail_candidate(uow, builder, application.prices, why, now)
    wanted = save_due(uow, _with_desired(builder, Desired.DELETED, "deleted", caller), now)
    candidates.release_all(uow, wanted, now)
    _record(uow, wanted, "builder.deleted", now)
    return wanted


def view(uow: UnitOfWork, application: Application, builder: Builder, now: datetime) -> BuilderView:
    """Return the builder with its version and its costs up to now."""
    shown = _views(uow, application, [builder], now)
    if not shown:
        raise RecordDamaged(builder.id)
    return shown[0]


def _views(
    uow: UnitOfWork, application: Application, builders: Sequence[Builder], now: datetime
) -> Sequence[BuilderView]:
    """Return the views of several builders of one tenant, in their order; without those whose version is damaged."""
    versions = uow.versions.shown([(builder.id, builder.version) for builder in builders])
    builders = [builder for builder in builders if builder.id in versions]
    ids = [builder.id for builder in builders]
    stale = credentials.stale_among(uow, [(builder, versions[builder.id]) for builder in builders])
    sums, hosts = uow.ledger.totals(ids, now), uow.domains.hosts(ids)
    runs = uow.sandboxes.of_present_runs([one for one in ids if versions[one].settings.processes])
    tried = uow.backups.newest_of(ids)
    done = {one: backup for one, backup in tried.items() if backup.status is BackupStatus.DONE}
    if others := [one for one in tried if one not in done]:
        done.update(uow.backups.newest_of(others, BackupStatus.DONE))
    return [
        BuilderView(
            builder=builder,
            version=versions[builder.id],
            preview_url=application.preview_domain.url(builder.host),
            cost=spending.shown(
                application,
                versions[builder.id].settings.resources.times(1 + builder.further),
                sums.get(builder.id, Sum()),
            ),
            needs_restart=builder.id in stale,
            review_passed=versions[builder.id].reviewed(now),
            domains=hosts.get(builder.id, ()),
            last_backup=tried.get(builder.id),
            last_good_backup=done.get(builder.id),
            processes=processes.views(builder, versions[builder.id], runs.get(builder.id, ())),
        )
        for builder in builders
    ]


def check_engine(application: Application) -> None:
    """Raise ``EngineUnavailable`` until sandboxes can be started, ``NoCapacity`` while the store is full."""
    readiness = application.engine.readiness()
    if readiness.full:
        raise NoCapacity(readiness.message, retry_after=60)
    if not readiness.ready:
        raise EngineUnavailable(
            f"The engine is not ready yet: {readiness.message.rstrip('.')}. Try again shortly.", retry_after=5
        )


def check_auto_stop(job_type: JobType, interval: int) -> None:
    """Raise ``ValidationFailed`` for an interval that a builder of this type cannot have."""
    if (why := auto_stop_error(job_type, interval)) is not None:
        raise ValidationFailed({"auto_stop_interval": [why]})


def check_scale(settings: VersionSettings, scale: Mapping[str, int]) -> None:
    """Raise ``ValidationFailed`` for a number of sandboxes that a process cannot have."""
    found = {f"scale.{name}": scale_error(name, number, settings.processes) for name, number in scale.items()}
    if errors := {field: [why] for field, why in found.items() if why is not None}:
        raise ValidationFailed(errors)


def check_job_type(job_type: JobType, settings: VersionSettings) -> None:
    """Raise ``ValidationFailed`` for an input of a builder that is no job, or a protocol of one without a preview."""
    if settings.stdin and job_type is not JobType.ONE_TIME:
        why = f"is read by jobs alone (job_type one_time, not {job_type.value}): send it with exec"
        raise ValidationFailed({"stdin": [why]})
    if settings.processes and job_type not in (JobType.ALWAYS_ON, JobType.WORKER):
        why = f"run beside an app or a worker, not beside a builder of job_type {job_type.value}: leave them out"
        raise ValidationFailed({"processes": [why]})
    if settings.protocol is not Protocol.HTTP and not job_type.has_preview:
        why = f"is spoken with visitors, which a builder of job_type {job_type.value} has none of: leave it out"
        raise ValidationFailed({"protocol": [why]})


def check_settings(uow: UnitOfWork, application: Application, tenant_id: TenantId, settings: VersionSettings) -> None:
    """Raise ``ValidationFailed`` for settings that this service, or this tenant, cannot provide."""
    errors: dict[str, list[str]] = {}
    lack = application.engine.sandboxes.supports(settings.isolation)
    if lack is not None:
        errors["isolation"] = [lack]
    for index, name in credentials.missing(uow, tenant_id, settings.credentials).items():
        errors[f"credentials.{index}"] = [
            f"there is no credential named {name!r}: PUT /api/v1/credentials/{name} first"
        ]
    if settings.env_file_values and (why := env_size_error(settings.variables)) is not None:
        errors["env_file"] = [f"its variables together with env {why}"]
    most = application.limits.max_start_timeout
    if settings.start_timeout > most:
        errors["start_timeout"] = [f"must be at most {most:g} seconds, the limit of this service"]
    if errors:
        raise ValidationFailed(errors)


def want_run(
    uow: UnitOfWork, application: Application, builder: Builder, caller: Caller, verb: str, now: datetime
) -> Builder:
    """Save the builder with a new run desired; ``verb`` names the caller's action."""
    admission.admit_run(uow, application, builder, now)
    if builder.disk_released_at is not None or not builder.disk_is_made:
        version = uow.versions.require(builder.id, builder.version)
        application.engine.disks.reserve_disk(builder.disk, version.settings.resources.disk_bytes)  # unless it is still
    kind = builder.stop_kind if builder.stop_kind is StopKind.IDLE else None
    fresh = replace(
        builder,
        generation=builder.generation + 1,
        exit_code=None,
        failure_code=None,
        asleep_since=None,
        stop_kind=kind,
        disk_released_at=None,
    )
    wanted = _with_desired(fresh, Desired.RUNNING, verb, caller)
    if builder.status in (Status.FAILED, Status.COMPLETED):
        wanted = candidates.change(uow, wanted, Status.STOPPED, wanted.cause.reason, now)
    return save_due(uow, wanted, now)


def _with_desired(builder: Builder, desired: Desired, verb: str, caller: Caller) -> Builder:
    """Return the builder with a new desired state and the caller as its actor."""
    return replace(builder, desired=desired, cause=Cause(caller.actor, f"{verb} by {caller.actor}"))


def save_due(uow: UnitOfWork, builder: Builder, now: datetime) -> Builder:
    """Save the builder, and have the reconciler look at it."""
    saved = replace(builder, updated_at=now)
    uow.builders.save(saved)
    uow.builders.make_due(saved.id, now)
    return saved


def _record(uow: UnitOfWork, builder: Builder, kind: str, now: datetime, **details: Any) -> None:
    candidates.record(uow, builder, kind, builder.cause.actor, builder.cause.reason, now, **details)


#: Common signature of ``start``, ``stop``, ``restart`` and ``delete``.
Command = Callable[[UnitOfWork, Application, Caller, str, datetime], Builder]


async def view_when_settled(application: Application, wanted: Builder) -> BuilderView:
    """Wait until the present generation of a builder that was just changed has an outcome; return its view.

    Raises what ``WaitLimit`` raises, and nothing of a generation that failed.
    """

    def read(uow: UnitOfWork, builder: Builder) -> BuilderView:
        return view(uow, application, builder, application.clock.now())

    return await outcomes.read_settled(application, wanted.id, wanted.generation, read)
