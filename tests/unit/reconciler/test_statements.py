"""Periodic jobs take as many statements with 500 builders as with 5, unless more is due."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta

from tests.application import World
from tests.contract.store.samples import make_builder, make_sandbox, make_version
from tests.statements import statements

from builderd.backups import service as backups
from builderd.backups import upkeep
from builderd.backups.job import BackupSchedule
from builderd.backups.model import Backup, BackupKind, BackupStatus
from builderd.backups.upkeep import BackupContext
from builderd.builders.model import Status
from builderd.code import service as bundles
from builderd.core.ids import BackupId, BuilderId, UploadId, new_id
from builderd.database.unit_of_work import UnitOfWork
from builderd.files.model import Upload
from builderd.idle import job as idle
from builderd.idle.job import Idleness
from builderd.previews.model import PreviewActivity

FEW, MANY = 5, 500
VISIT = PreviewActivity(1, 0, 0, open_connections=0, failures=0, idle_seconds=0)


async def add(world: World, number: int) -> None:
    """Store so many running builders that were just used and backed up, each with an upload of its tenant."""
    now = world.clock.now()
    hosts = await world.application.store.write(lambda uow: [_add(uow, world, now) for _ in range(number)])
    for host in hosts:
        world.previews.visit(host, VISIT)


def _add(uow: UnitOfWork, world: World, now: datetime) -> str:
    tenant = world.caller.tenant_id
    changes = {"status": Status.RUNNING, "observed_generation": 1, "auto_stop_interval": 15, "last_active_at": now}
    builder = make_builder(tenant_id=tenant, created_at=now, backup_interval_hours=6, disk_is_made=True, **changes)
    uow.builders.add(builder)
    uow.versions.add(make_version(builder.id))
    uow.sandboxes.add(make_sandbox(builder.id))
    uow.backups.add(_backup(builder.id, world, now))
    upload = UploadId(new_id())
    uow.uploads.add(Upload(upload, tenant, upload, now, now + timedelta(days=1)))
    return builder.host


def _backup(builder: BuilderId, world: World, now: datetime) -> Backup:
    return Backup(
        id=BackupId(new_id()),
        tenant_id=world.caller.tenant_id,
        builder_id=builder,
        builder_name="app",
        version=1,
        kind=BackupKind.SCHEDULED,
        status=BackupStatus.DONE,
        actor="system",
        owner=world.application.instance,
        created_at=now,
    )


Loop = Callable[[World], Callable[[], Awaitable[object]]]
LOOPS: dict[str, Loop] = {
    "planning of backups": lambda world: BackupSchedule(world.application).plan,
    "upkeep of backups": lambda world: lambda: upkeep.clean_up(BackupContext(world.application)),
    "health of backups": lambda world: lambda: world.read(lambda uow: backups.health(uow, world.clock.now())),
    "idle check": lambda world: Idleness(world.application).check,
    "visits": lambda world: lambda: idle.note(world.application),
    "expiry of uploads": lambda world: lambda: bundles.expire(world.application),
}


async def count(world: World, loop: Loop) -> int:
    run = loop(world)
    await run()  # what was added is due once
    with statements(world.application.store) as seen:
        await run()
    return len(seen)


async def test_periodic_jobs_take_as_many_statements_with_many_builders(world: World) -> None:
    counts = []
    for number in (FEW, MANY - FEW):
        await add(world, number)
        counts.append({name: await count(world, loop) for name, loop in LOOPS.items()})
    assert counts[0] == counts[1]
