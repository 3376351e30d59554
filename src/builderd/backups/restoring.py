"""Restores: fill a new disk and compare every file, then let the builder, a new one, a drill or a recovery use it."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from datetime import datetime
from typing import NamedTuple

from builderd.backups import restores, upkeep
from builderd.backups import service as backups
from builderd.backups.model import (
    Backup,
    BackupStatus,
    Restore,
    RestoreKind,
    RestoreStatus,
    external_cause_of,
    failure_of,
)
from builderd.backups.port import SnapshotDamaged
from builderd.backups.upkeep import BackupContext, reason_of
from builderd.builders import service as builders
from builderd.builders.model import Builder, Desired, JobType
from builderd.builders.service import Caller, NewBuilder
from builderd.core.errors import (
    BackupFailed,
    EngineUnavailable,
    InvalidState,
    MachineFault,
    NoCapacity,
    StoreUnavailable,
)
from builderd.core.ids import BuilderId, SandboxId, new_secret
from builderd.database.unit_of_work import UnitOfWork
from builderd.money.model import Prices
from builderd.qa import service as qa
from builderd.qa.model import gate_failure, gate_passed
from builderd.reconciler import record as transitions
from builderd.reconciler.builds import Builds
from builderd.reconciler.failures import exited_early, not_listening
from builderd.reconciler.observe import WorkItem
from builderd.reconciler.record import Transition
from builderd.reconciler.steps.await_listening import wait_until_up
from builderd.reconciler.steps.install import make_layer
from builderd.reconciler.steps.start import make_spec
from builderd.sandboxes.model import Sandbox
from builderd.versions import service as deployments
from builderd.versions.model import Version


class StoredState(NamedTuple):
    """Stored records of a restore. ``version`` is the backup's, with a disk at least as large as the builder's now."""

    backup: Backup
    builder: Builder
    version: Version
    safety: Backup | None


async def carry_out(context: BackupContext, restore: Restore) -> None:
    """Carry out an open restore until it is done or has failed; do nothing while its safety backup is being taken.

    Raises ``StoreUnavailable`` and leaves it open: that is no failure of the restore, and the schedule comes back.
    """
    async with context.drill(restore.tenant_id) if restore.kind is RestoreKind.DRILL else nullcontext():
        await _carry_out(context, restore)


async def _carry_out(context: BackupContext, restore: Restore) -> None:
    try:
        stored = await context.app.store.read(lambda uow: _load(uow, restore))
        if stored.safety is not None and stored.safety.is_open:
            return
        await _refuse_unsafe(context, stored)
        # An earlier process failed after filling the disk, removed it, and was killed before it recorded that.
        if restore.status is RestoreStatus.PLANNED or await context.app.engine.disks.disk(restore.disk) is None:
            restore = await _fill(context, restore, stored)
        await _hand_over(context, restore, stored)
    except InvalidState as error:
        # Another version takes over just now: the filled disk waits.
        if error.retry_after is None:
            await _fail(context, restore, error)
    except StoreUnavailable:
        raise
    except Exception as error:
        await _fail(context, restore, error)


async def _refuse_unsafe(context: BackupContext, stored: StoredState) -> None:
    if stored.safety is None or stored.safety.status is not BackupStatus.FAILED:
        return
    # Without a disk there is nothing that the restore could overwrite.
    if await context.app.engine.disks.disk(stored.builder.disk) is not None:
        failure = failure_of(stored.safety)
        message = f"What the builder has now could not be backed up, so it stays: {failure.message}"
        # Of the machine's faults the caller hears that they pass; another code would have the restore wait.
        kind = type(failure) if isinstance(failure, NoCapacity | MachineFault | EngineUnavailable) else BackupFailed
        raise kind(message, data=failure.data, retry_after=failure.retry_after)


def _refuse_given_up(uow: UnitOfWork, restore: Restore) -> None:
    """Raise the error that ended the restore meanwhile: a stop, a deletion, another version, or an earlier end."""
    found = _still_open(uow, restore)
    if found is None:
        raise InvalidState("The restore is over already.")
    if found.error:
        raise failure_of(found)


def _still_open(uow: UnitOfWork, restore: Restore) -> Restore | None:
    """Read the restore again; None when it is over. The lock waits for a COMMIT whose answer was lost."""
    uow.builders.get(restore.builder_id, lock=True)
    found = uow.restores.get(restore.id)
    return found if found is not None and found.is_open else None


def _load(uow: UnitOfWork, restore: Restore) -> StoredState:
    _refuse_given_up(uow, restore)
    backup, builder = uow.backups.get(restore.backup_id), uow.builders.get(restore.builder_id)
    assert backup is not None, "a restore refers to its backup"
    assert builder is not None, "a restore refers to its builder"
    safety = uow.backups.get(restore.safety) if restore.safety else None
    return StoredState(backup, builder, restores.version_of(uow, backup), safety)


async def _fill(context: BackupContext, restore: Restore, stored: StoredState) -> Restore:
    engine, backup = context.app.engine, stored.backup

    def begin(uow: UnitOfWork) -> None:
        _refuse_given_up(uow, restore)
        uow.restores.save(replace(restore, status=RestoreStatus.PLANNED))
        now = context.app.clock.now()
        backups.notify(uow, restore, "restore.started", now, reason="restoring", details=_details(stored))

    context.fault_point("FillDisk.begun")
    assert backup.snapshot is not None, "a finished backup has a snapshot"
    # The disk is made when it is its turn: each claims room in the store, so few may wait.
    async with context.repository(restore.tenant_id) as repository, context.progress(restore, "restore") as on_progress:
        # Recorded before its disk is touched, so that a half-filled disk never counts as filled.
        await context.write(restore, begin)
        await engine.disks.delete_disk(restore.disk)
        await engine.disks.create_disk(restore.disk, stored.version.settings.resources.disk_bytes)
        await context.app.backup_repository.restore(repository, backup.snapshot, restore.disk, on_progress)
    await engine.disks.mark_bundle(restore.disk, stored.version.bundle_hash)
    context.fault_point("FillDisk.done")
    filled = replace(restore, status=RestoreStatus.FILLED)

    def record(uow: UnitOfWork) -> None:
        _refuse_given_up(uow, restore)
        uow.restores.save(filled)

    await context.write(restore, record)
    context.fault_point("FillDisk.recorded")
    return filled


async def _hand_over(context: BackupContext, restore: Restore, stored: StoredState) -> None:
    context.fault_point("HandOver.begun")
    match restore.kind:
        case RestoreKind.NEW:
            await _make_builder(context, restore, stored)
        case RestoreKind.DRILL:
            await _drill(context, restore, stored)
        case RestoreKind.SAME:
            await _switch(context, restore, stored)
        case RestoreKind.RECOVERY:
            await attach_restored_disk(context, restore, stored.backup, stored.builder)
    context.fault_point("HandOver.recorded")


async def _make_builder(context: BackupContext, restore: Restore, stored: StoredState) -> None:
    app, old = context.app, stored.builder
    now = app.clock.now()
    new = NewBuilder(
        name=restore.name,
        bundle_hash=stored.version.bundle_hash,
        settings=stored.version.settings.with_gates,
        job_type=old.job_type,
        visibility=old.visibility,
        auto_stop_interval=old.auto_stop_interval,
        backup_interval_hours=old.backup_interval_hours,
        disk=restore.disk,
        scale={name: old.scale[name] for name in stored.version.settings.processes if name in old.scale},
    )

    def record(uow: UnitOfWork) -> Builder:
        _refuse_given_up(uow, restore)
        made = builders.create(uow, app, Caller(restore.tenant_id, restore.actor), new, now)
        _done(uow, replace(restore, made=made.id), stored, app.clock.now())
        return made

    made = await app.commit(record)
    app.signals.change(restore.builder_id)
    app.signals.desired_changed(made.id)


async def _switch(context: BackupContext, restore: Restore, stored: StoredState) -> None:
    """Let a new version of the backup's code take over, on the restored disk."""
    app, now = context.app, context.app.clock.now()
    caller = Caller(restore.tenant_id, restore.actor)

    def record(uow: UnitOfWork) -> Builder:
        builder = deployments.changeable(uow, app, caller, restore.builder_id)
        _refuse_given_up(uow, restore)
        builders.check_settings(uow, app, caller.tenant_id, stored.version.settings)
        deployed = deployments.switch(uow, app, caller, builder, restore.disk, stored.version, now)
        _done(uow, replace(restore, number=deployed.version), stored, now)
        return deployed.builder

    await app.commit(record)


async def _drill(context: BackupContext, restore: Restore, stored: StoredState) -> None:
    fault = await run_drill(context, restore, stored.builder, stored.version)
    now = context.app.clock.now()

    def record(uow: UnitOfWork) -> None:
        _refuse_given_up(uow, restore)
        backup = uow.backups.get(restore.backup_id)
        assert backup is not None, "a restore refers to its backup"
        verified = now if fault is None else backup.verified_at
        uow.backups.save(replace(backup, drilled_at=now, verified_at=verified, fault=fault or ""))
        if fault is None:
            uow.restores.save(replace(restore, status=RestoreStatus.DONE, finished_at=now))
            backups.notify(uow, restore, "drill.passed", now, reason="restored and tried", details=_details(stored))
            return
        uow.restores.save(replace(restore, status=RestoreStatus.FAILED, finished_at=now, error=fault))
        backups.notify(uow, restore, "drill.failed", now, reason=fault, details=_details(stored))

    await context.app.engine.disks.delete_disk(restore.disk)
    await context.write(restore, record)


def _done(uow: UnitOfWork, restore: Restore, stored: StoredState, now: datetime) -> None:
    uow.restores.save(replace(restore, status=RestoreStatus.DONE, finished_at=now))
    details = {**_details(stored), "made": restore.made}
    backups.notify(uow, restore, "restore.finished", now, reason="restored", details=details)


def _details(stored: StoredState) -> dict[str, object]:
    return {"backup": stored.backup.id, "version": stored.backup.version}


async def _fail(context: BackupContext, restore: Restore, error: Exception) -> None:
    now, reason = context.app.clock.now(), reason_of(error)
    # What was handed over after all keeps its disk.
    if await context.app.store.write(lambda uow: _still_open(uow, restore)) is None:
        return
    lost = False
    if restore.kind is RestoreKind.RECOVERY:
        builder = await context.app.store.read(lambda uow: uow.builders.get(restore.builder_id))
        lost = builder is not None and await context.app.engine.disks.disk(builder.disk) is None

    def record(uow: UnitOfWork) -> bool:
        failed = replace(restore, status=RestoreStatus.FAILED, finished_at=now, error=reason)
        uow.restores.save(replace(failed, hindrance=external_cause_of(error)))
        kind = "drill.failed" if restore.kind is RestoreKind.DRILL else "restore.failed"
        backups.notify(uow, restore, kind, now, reason=reason, details={"backup": restore.backup_id})
        backup = uow.backups.get(restore.backup_id)
        if lost:
            give_up(uow, restore, context.app.prices, reason, now)
        if backup is None or backup.fault == upkeep.LOST:
            return False
        # A full disk or an unreachable repository does not mean that the backup is bad.
        if restore.kind is RestoreKind.DRILL and isinstance(error, SnapshotDamaged):
            uow.backups.save(replace(backup, drilled_at=now, fault=reason))
        return upkeep.mark(uow, context, restore.tenant_id, error)

    # In this order: a restore that is recorded as over must leave no disk, and one that is not is filled again.
    await context.app.engine.disks.delete_disk(restore.disk)
    is_marked = await context.write(restore, record)
    if lost:
        context.app.signals.desired_changed(restore.builder_id)
    if is_marked:
        await upkeep.check_one(context, restore.tenant_id)


async def run_drill(context: BackupContext, restore: Restore, builder: Builder, version: Version) -> str | None:
    """Verify the restored disk by starting it; return the fault, or None.

    Jobs are skipped: a run would repeat their work.
    """
    if builder.job_type is JobType.ONE_TIME:
        return None
    app, sandbox_id = context.app, _sandbox_id(restore)
    layer = (await make_layer(app, Builds(app), WorkItem(builder, version))).key
    app.scratch.add(sandbox_id)
    try:
        await _clear(context, restore)
        sandbox = Sandbox(
            id=sandbox_id,
            builder_id=builder.id,
            version=version.number,
            generation=1,
            attempt=1,
            created_at=app.clock.now(),
            disk=restore.disk,
            trial=True,
        )
        item = WorkItem(builder, replace(version, layer_key=layer))
        spec = await make_spec(app, item, sandbox)
        # Only the serving app may have the builder's service token, so the drill gets another one, and its own log.
        env = {**spec.env, "SERVICE_TOKEN": new_secret("bds")}
        report = await app.engine.sandboxes.start(replace(spec, builder_id=_drill_builder_id(restore), env=env))
        return await _judge(context, item, replace(sandbox, started_at=report.started_at))
    finally:
        await _clear(context, restore)
        app.scratch.discard(sandbox_id)


def _sandbox_id(restore: Restore) -> SandboxId:
    """Return the drill's sandbox id, constant for a restore, so that a retry finds what an earlier attempt left."""
    return SandboxId(restore.id.replace("-", "")[:16])


async def _clear(context: BackupContext, restore: Restore) -> None:
    sandbox_id = _sandbox_id(restore)
    await context.app.engine.sandboxes.stop(sandbox_id, 0)
    await context.app.engine.sandboxes.remove(sandbox_id)
    await context.app.engine.logs.delete_logs(_drill_builder_id(restore))


def _drill_builder_id(restore: Restore) -> BuilderId:
    """Return the builder id that a drill runs under, which keeps its log apart from the builder's."""
    return BuilderId(restore.id)


async def _judge(context: BackupContext, item: WorkItem, sandbox: Sandbox) -> str | None:
    app, settings = context.app, item.version.settings
    wait = await wait_until_up(app, item, sandbox, app.limits.start_seconds(settings))
    if wait.reachable:
        version = replace(item.version, adopted_port=wait.port)
        checks = await qa.judge(app, item.builder, version, replace(sandbox, listening_at=app.clock.now()))
        if gate_passed(checks):
            return None
        reason = gate_failure(checks)
    elif wait.ended is None or wait.ended.end is None:
        reason = not_listening(wait.listening, settings.port, wait.seconds, await qa.last_lines(app, sandbox.id))
    else:
        port = settings.port if item.builder.job_type.must_listen else None
        reason = exited_early(wait.ended.end, settings.resources, port, await qa.last_lines(app, sandbox.id))
    return f"The files are whole, but the app did not come up with them: {reason}"


async def attach_restored_disk(context: BackupContext, restore: Restore, backup: Backup, known: Builder) -> None:
    """Put the restored disk in the place of the missing one; the reconciler continues from there."""
    app, now = context.app, context.app.clock.now()
    if await app.engine.disks.disk(known.disk) is not None:
        raise BackupFailed("The builder has a disk again.")

    def record(uow: UnitOfWork) -> Builder:
        builder = uow.builders.get(restore.builder_id, lock=True)
        if builder is None or builder.desired is Desired.DELETED or builder.disk != known.disk:
            raise BackupFailed("The builder was deleted, or has another disk by now.")
        reason = f"its disk was gone: the backup of {backups.when(backup)} is back"
        saved = replace(
            builder,
            disk=restore.disk,
            disk_is_made=True,
            # On a member that is away it still is, and is deleted when that returns.
            spare_disks=(*builder.spare_disks, known.disk),
            location="",
            cause=replace(builder.cause, reason=reason),
            status_reason=reason,
            updated_at=now,
        )
        uow.builders.save(saved)
        version = uow.versions.get(builder.id, builder.to_run[0])
        if version is not None and version.released and version.number != backup.version:
            # The release has prepared the disk that is gone; this one is an older version's.
            uow.versions.save(replace(version, released=False))
        uow.builders.make_due(builder.id, now)
        uow.restores.save(replace(restore, status=RestoreStatus.DONE, finished_at=now))
        details = {"backup": backup.id, "version": backup.version}
        backups.notify(uow, restore, "restore.finished", now, reason=reason, details=details)
        return saved

    await app.commit(record)


def give_up(uow: UnitOfWork, restore: Restore, prices: Prices, reason: str, now: datetime) -> None:
    """Fail the builder with the reason, unless it was stopped or deleted meanwhile."""
    builder = uow.builders.get(restore.builder_id, lock=True)
    if builder is None or builder.desired is not Desired.RUNNING:
        return
    version = uow.versions.require(builder.id, builder.to_run[0])
    words = (
        f"Its disk is gone, and the newest backup of it could not be brought back: {reason} "
        "Start it to try again, restore another backup, or remove its backups to begin with an empty disk."
    )
    transition = Transition(uow, builder, prices, now)
    transitions.failed(transition, version, code=BackupFailed.code, reason=words)
    uow.builders.make_due(builder.id, now)
