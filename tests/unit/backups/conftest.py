"""A builder that runs on fakes, and the backup schedule beside it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import pytest
from tests.application import World, fake_world, hurry
from tests.fakes.backup_repository import FakeBackupRepository

from builderd.application import Application
from builderd.backups import service as backups
from builderd.backups.job import BackupSchedule
from builderd.backups.model import Backup, Restore
from builderd.builders.model import Builder
from builderd.core.errors import StoreUnavailable
from builderd.core.ids import DiskId
from builderd.core.loops import FaultPoint, no_fault
from builderd.core.resources import Limit
from builderd.tokens.limits import TenantLimit, TenantLimits

HOUR = timedelta(hours=1)


@dataclass
class Scene:
    """World with backups; ``schedule`` works when the test calls it."""

    world: World
    schedule: BackupSchedule
    backup_repository: FakeBackupRepository

    async def settle(self) -> None:
        """Run until no work is left for now."""
        await self.schedule.begin_open()
        while not await self.schedule.idle():
            await self.schedule.begin_open()

    async def settle_backups(self) -> None:
        """Backups alone, so that what waits for them is still to come."""
        for backup in await self.world.read(lambda uow: uow.backups.open(self.world.application.instance)):
            await self.schedule._run_backup(backup.id)

    async def pass_time(self, span: timedelta) -> None:
        """And see to what is due then."""
        self.world.clock.move(span.total_seconds())
        await self.schedule.plan()
        await self.settle()

    async def take(self, builder: Builder) -> Backup:
        self.world.clock.move(1)
        app, now = self.world.application, self.world.clock.now()
        planned = await app.store.write(lambda uow: backups.request(uow, app, self.world.caller, builder.id, now))
        await self.settle()
        return await self.backup(planned)

    async def backup(self, backup: Backup) -> Backup:
        found = await self.world.read(lambda uow: uow.backups.get(backup.id))
        assert found is not None
        return found

    async def of(self, builder: Builder) -> Sequence[Backup]:
        return await self.world.read(lambda uow: uow.backups.of_builder(builder.id))

    async def restore(self, restore: Restore) -> Restore:
        found = await self.world.read(lambda uow: uow.restores.get(restore.id))
        assert found is not None
        return found

    async def kinds(self, builder: Builder) -> list[str]:
        """The types of its events that are about backups."""
        events = await self.world.events(builder)
        return [one.type for one in events if one.type.startswith(("backup", "restore", "drill"))]

    async def write(self, builder: Builder, name: str, content: bytes) -> None:
        self.world.engine.known_disks[(await self.world.builder(builder)).disk].files[name] = content

    def files(self, disk: DiskId) -> dict[str, bytes]:
        return self.world.engine.known_disks[disk].files

    def with_fault(self, fault: FaultPoint) -> BackupSchedule:
        return BackupSchedule(self.world.application, fault)

    @contextmanager
    def without_database(self, *methods: str) -> Iterator[None]:
        """Fail calls of ``read`` or ``write``, as an unreachable database does."""

        async def away(_: Any) -> Any:
            raise StoreUnavailable("The database does not answer.")

        with pytest.MonkeyPatch.context() as patch:
            for method in methods:
                patch.setattr(self.world.application.store, method, away)
            yield

    def with_rules(self, **rules: Any) -> Scene:
        app = self.world.application
        return self._with(replace(app, backup_rules=replace(app.backup_rules, **rules)))

    def with_quota(self, **limits: int) -> Scene:
        app = self.world.application
        return self._with(replace(app, tenant_limits=TenantLimits(TenantLimit(quota=Limit(**limits)))))

    def _with(self, changed: Application) -> Scene:
        return Scene(
            replace(self.world, application=changed), BackupSchedule(changed, no_fault), self.backup_repository
        )


@pytest.fixture
async def scene(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Scene]:
    hurry(monkeypatch.setattr)
    async with fake_world() as world, world.reconciling():
        archive = world.application.backup_repository
        assert isinstance(archive, FakeBackupRepository)
        yield Scene(world, BackupSchedule(world.application), archive)
