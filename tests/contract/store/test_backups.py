"""Backups, restores and their keys as every store keeps them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest
from tests.contract.store.samples import NOW, SECOND, TENANT, make_builder, make_version

from builderd.backups.model import (
    Backup,
    BackupCheck,
    BackupKey,
    BackupKind,
    BackupStatus,
    Restore,
    RestoreKind,
    RestoreStatus,
)
from builderd.builders.model import Builder, Desired, Status
from builderd.core.errors import Conflict
from builderd.core.ids import BackupId, BuilderId, DiskId, RestoreId, new_id
from builderd.database.unit_of_work import Store, UnitOfWork

OWNER = "me"
HINDRANCE = {"code": "name_taken", "data": {"uuid": "\0"}, "retry_after": None}


async def _builder(store: Store, **changes: Any) -> Builder:
    builder = make_builder(**changes)

    def add(uow: UnitOfWork) -> None:
        uow.builders.add(builder)
        uow.versions.add(make_version(builder.id))

    await store.write(add)
    return builder


def _backup(builder: Builder, **changes: Any) -> Backup:
    backup = Backup(
        id=BackupId(new_id()),
        tenant_id=builder.tenant_id,
        builder_id=builder.id,
        builder_name=builder.name,
        version=1,
        kind=BackupKind.SCHEDULED,
        status=BackupStatus.DONE,
        actor="system",
        owner=OWNER,
        created_at=NOW,
    )
    return replace(backup, **changes)


async def _add(store: Store, *backups: Backup) -> None:
    def add(uow: UnitOfWork) -> None:
        for backup in backups:
            uow.backups.add(backup)

    await store.write(add)


async def test_every_field_of_a_backup_is_stored(store: Store) -> None:
    backup = _backup(await _builder(store), status=BackupStatus.PLANNED, copy=DiskId("copy"))
    await _add(store, backup)
    assert await store.read(lambda uow: uow.backups.get(backup.id)) == backup
    done = replace(
        backup,
        status=BackupStatus.DONE,
        copy=None,
        finished_at=NOW + SECOND,
        snapshot="a" * 64,
        files=3,
        size_bytes=1 << 40,
        added_bytes=1 << 39,
        error="no\0thing",
        expires_at=NOW,
        retry_at=NOW,
        drilled_at=NOW,
        verified_at=NOW,
        fault="damaged",
        hindrance=HINDRANCE,
    )
    await store.write(lambda uow: uow.backups.save(done))
    assert await store.read(lambda uow: uow.backups.get(backup.id)) == replace(done, error="no\ufffdthing")


async def test_open_backups_are_listed_by_owner_oldest_first(store: Store) -> None:
    builder = await _builder(store)
    held = _backup(builder, status=BackupStatus.COPIED, created_at=NOW + SECOND)
    planned = _backup(builder, status=BackupStatus.PLANNED)
    await _add(store, held, planned, _backup(builder), replace(planned, id=BackupId(new_id()), owner="other"))
    assert await store.read(lambda uow: uow.backups.open(OWNER)) == [planned, held]


async def test_expired_backup_is_found_and_deleted_with_its_restores(store: Store) -> None:
    builder = await _builder(store)
    over, kept = _backup(builder, expires_at=NOW), _backup(builder, expires_at=NOW + SECOND)
    await _add(store, over, kept, _backup(builder))
    await store.write(lambda uow: uow.restores.add(_restore(over)))
    assert await store.read(lambda uow: uow.backups.expired(NOW)) == [over]
    for _ in range(2):
        await store.write(lambda uow: uow.backups.delete(over.id))
    assert await store.read(lambda uow: uow.backups.get(over.id)) is None
    with pytest.raises(LookupError):
        await store.write(lambda uow: uow.backups.save(over))


def _restore(backup: Backup, **changes: Any) -> Restore:
    restore = Restore(
        id=RestoreId(new_id()),
        tenant_id=backup.tenant_id,
        builder_id=backup.builder_id,
        backup_id=backup.id,
        kind=RestoreKind.SAME,
        status=RestoreStatus.PLANNED,
        actor="token ci",
        owner=OWNER,
        created_at=NOW,
        disk=DiskId("restored"),
    )
    return replace(restore, **changes)


async def test_every_field_of_a_restore_is_stored_and_open_ones_found(store: Store) -> None:
    builder = await _builder(store)
    backup = _backup(builder)
    await _add(store, backup)
    restore, foreign = _restore(backup), _restore(backup, owner="other")
    for one in (restore, foreign):
        await store.write(lambda uow, one=one: uow.restores.add(one))  # type: ignore[misc]
    assert await store.read(lambda uow: uow.restores.open(OWNER)) == [restore]
    assert len(await store.read(lambda uow: uow.restores.open_of(builder.id))) == 2
    done = replace(
        restore,
        kind=RestoreKind.NEW,
        status=RestoreStatus.DONE,
        name="other",
        safety=BackupId(new_id()),
        made=BuilderId(new_id()),
        number=3,
        finished_at=NOW,
        error="none",
        hindrance=HINDRANCE,
    )
    await store.write(lambda uow: uow.restores.save(done))
    assert await store.read(lambda uow: uow.restores.get(restore.id)) == done
    assert await store.read(lambda uow: uow.restores.open(OWNER)) == []


async def test_a_tenant_has_one_key(store: Store) -> None:
    assert await store.read(lambda uow: uow.backup_keys.lacking()) == [TENANT.id]
    key = BackupKey(TENANT.id, bytes(range(256)), NOW, NOW, NOW)
    await store.write(lambda uow: uow.backup_keys.add(key))
    with pytest.raises(Conflict):
        await store.write(lambda uow: uow.backup_keys.add(key))
    changed = replace(key, sealed=b"new", checked_at=NOW + SECOND, forgotten_at=NOW, fault="damaged")
    await store.write(lambda uow: uow.backup_keys.save(changed))
    assert await store.read(lambda uow: uow.backup_keys.get(TENANT.id)) == changed
    assert await store.read(lambda uow: uow.backup_keys.all()) == [changed]


async def test_bundle_of_a_backup_stays_in_use_after_delete(store: Store) -> None:
    builder = await _builder(store, desired=Desired.DELETED, status=Status.DELETED)
    assert not await store.read(lambda uow: uow.versions.uses_bundle("a" * 64))
    await _add(store, _backup(builder, status=BackupStatus.COPIED))
    assert await store.read(lambda uow: uow.versions.uses_bundle("a" * 64))


async def _due(store: Store, now: datetime = NOW, tried_before: datetime | None = NOW) -> set[BuilderId]:
    found = await store.write(lambda uow: uow.backup_checks.due(now, tried_before, 10))
    assert list(found) == sorted(await store.read(lambda uow: uow.backup_checks.due(now, tried_before, 10)))
    return set(found)


async def _record(store: Store, builder: Builder, check_at: datetime | None, base: datetime | None = None) -> None:
    await store.write(lambda uow: uow.backup_checks.record({builder.id: BackupCheck(check_at, base)}))


async def test_builders_due_for_a_look_at_their_backups(store: Store) -> None:
    wants = await _builder(store, backup_interval_hours=6, created_at=NOW - timedelta(hours=1))
    await _builder(store)
    await _builder(store, backup_interval_hours=6, desired=Desired.DELETED)
    assert await _due(store) == {wants.id}
    await _record(store, wants, NOW + SECOND, NOW + SECOND)
    assert await _due(store) == set()
    assert await _due(store, NOW + SECOND) == {wants.id}
    assert await _due(store, tried_before=NOW + SECOND) == {wants.id}
    assert await _due(store, tried_before=None) == set()
    await _record(store, wants, None)
    assert await _due(store, NOW + timedelta(days=9), NOW + timedelta(days=9)) == set()


async def test_changes_of_backups_and_restores_make_their_builder_due(store: Store) -> None:
    builder = await _builder(store, backup_interval_hours=6)
    backup = _backup(builder)
    restore = _restore(backup)
    changes: list[Callable[[UnitOfWork], None]] = [
        lambda uow: uow.backups.add(backup),
        lambda uow: uow.backups.save(replace(backup, status=BackupStatus.FAILED)),
        lambda uow: uow.restores.add(restore),
        lambda uow: uow.restores.save(replace(restore, status=RestoreStatus.DONE)),
        lambda uow: uow.backups.delete(backup.id),
    ]
    for change in changes:
        await _record(store, builder, None)
        assert await _due(store) == set()
        await store.write(change)
        assert await _due(store) == {builder.id}


async def test_a_change_during_a_look_makes_its_builder_due_again(store: Store) -> None:
    """The look stores a time for what it has read; the change that it did not see must not be lost."""
    builder = await _builder(store, backup_interval_hours=6)
    looked, goes_on = threading.Event(), threading.Event()

    def look(uow: UnitOfWork) -> None:
        assert uow.backup_checks.due(NOW, NOW, 10) == [builder.id]
        assert uow.backups.of_builder(builder.id) == []
        looked.set()
        assert goes_on.wait(20)
        uow.backup_checks.record({builder.id: BackupCheck(None, None)})

    looking = asyncio.create_task(store.write(look))
    assert await asyncio.to_thread(looked.wait, 20)
    change = asyncio.create_task(_add(store, _backup(builder)))
    goes_on.set()
    await asyncio.gather(looking, change)
    assert await _due(store) == {builder.id}


async def test_health_counts_builders_that_want_backups(store: Store) -> None:
    assert await store.read(lambda uow: uow.backups.oldest_last_good()) is None
    good, bad = [await _builder(store, backup_interval_hours=6) for _ in range(2)]
    away = await _builder(store, backup_interval_hours=6, desired=Desired.DELETED)
    failed, later = BackupStatus.FAILED, NOW + SECOND
    await _add(store, _backup(good, status=failed), _backup(good, created_at=later), _backup(bad))
    await _add(store, _backup(bad, created_at=later, status=failed), _backup(away, status=failed))
    assert await store.read(lambda uow: uow.backups.count_failing()) == 1
    assert await store.read(lambda uow: uow.backups.oldest_last_good()) == NOW


async def test_the_last_drill_of_a_builder_is_found(store: Store) -> None:
    builder, other = await _builder(store), await _builder(store)
    backup, foreign = _backup(builder), _backup(other)
    await _add(store, backup, foreign)
    ids = [builder.id, other.id, BuilderId(new_id())]
    assert await store.read(lambda uow: uow.restores.last_drills(ids)) == {}
    last = _restore(backup, kind=RestoreKind.DRILL, status=RestoreStatus.FAILED, created_at=NOW + SECOND)
    for one in (
        *(_restore(backup, kind=RestoreKind.DRILL), last),
        *(_restore(backup, created_at=NOW + 2 * SECOND), _restore(foreign, kind=RestoreKind.DRILL)),
    ):
        await store.write(lambda uow, one=one: uow.restores.add(one))  # type: ignore[misc]
    drills = {builder.id: last.created_at, other.id: NOW}
    assert await store.read(lambda uow: uow.restores.last_drills(ids)) == drills
    assert await store.read(lambda uow: uow.restores.with_open(ids)) == {builder.id, other.id}
