"""The schedule: plans what is due, and sees to all that is planned. It remembers nothing but in the store."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Coroutine, Sequence
from datetime import datetime, timedelta
from typing import Any

from builderd.application import Application
from builderd.backups import restores, upkeep
from builderd.backups import service as backups
from builderd.backups.model import DRILL_RETRY, NEVER, Backup, BackupCheck, BackupKind, BackupStatus, due_at
from builderd.backups.restoring import carry_out
from builderd.backups.taking import take
from builderd.backups.upkeep import BackupContext
from builderd.builders.model import Builder, Status
from builderd.core.ids import BackupId, BuilderId, RestoreId
from builderd.core.loops import FaultPoint, end_tasks, every, no_fault
from builderd.database.connection import Kind
from builderd.database.unit_of_work import UnitOfWork
from builderd.events.model import SYSTEM

#: Seconds between two checks for requested work, for due work, and for expired backups. What this process requests is
#: found at once; ``LEAST_INTERVAL`` bounds how often a busy service checks.
POLL_INTERVAL, PLAN_INTERVAL, UPKEEP_INTERVAL = 1.0, 10.0, 600.0
LEAST_INTERVAL = 0.1
#: Builders that are looked at in one transaction, and seconds before the next, so that other writers get their turn.
BATCH, PAUSE = 100, 0.05

log = logging.getLogger(__name__)


class BackupSchedule:
    """Backup schedule: ``run`` continues until cancelled; work cut off then is repeated by the next process."""

    def __init__(self, application: Application, fault: FaultPoint = no_fault) -> None:
        self.context = BackupContext(application, fault)
        self._app = application
        self._tasks: dict[str, asyncio.Task[None]] = {}

    async def run(self) -> None:
        """Plan, start and tidy backups, each at its own interval, until cancelled."""
        helpers = [
            asyncio.create_task(every(PLAN_INTERVAL, self.plan, event="backup planning")),
            asyncio.create_task(every(UPKEEP_INTERVAL, self._keep_up, event="backup retention")),
        ]
        try:
            intervals = {"interval": POLL_INTERVAL, "pause": LEAST_INTERVAL}
            await self._app.store.call_after_writes(self.begin_open, Kind.BACKUPS, **intervals, event="backup poll")
        finally:
            await end_tasks(*helpers, *self._tasks.values())

    async def _guarded(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except Exception:
            log.warning("backup job failed, retrying at its next turn", exc_info=True)

    async def _keep_up(self) -> None:
        await upkeep.clean_up(self.context)
        await upkeep.check(self.context)

    # What is due

    async def plan(self) -> None:
        """Plan the backups and drills that are due."""
        await backups.make_keys(self._app)
        now, store = self._app.clock.now(), self._app.store
        while await store.read(lambda uow: self._due(uow, now, 1)):
            if await store.write(lambda uow: self._plan(uow, now)) < BATCH:
                break
            await asyncio.sleep(PAUSE)

    def _due(self, uow: UnitOfWork, now: datetime, limit: int) -> Sequence[BuilderId]:
        every = self._drill_interval
        return uow.backup_checks.due(now, now - every if every else None, limit)

    @property
    def _drill_interval(self) -> timedelta:
        return min(self._app.backup_rules.drill_every, NEVER)

    def _plan(self, uow: UnitOfWork, now: datetime) -> int:
        """Plan what is due for a batch of builders, and record when each is looked at again; return their number."""
        due = self._due(uow, now, BATCH)
        found, restoring = uow.backups.of_builders(due), uow.restores.with_open(due)
        drills = uow.restores.last_drills(due)
        checks = {}
        for builder in uow.builders.get_all(due).values():
            taken = found[builder.id]
            check_at = self._plan_backup(uow, builder, taken, now)
            is_free = builder.id not in restoring
            base = self._plan_drill(uow, taken, drills.get(builder.id), now) if is_free else None
            checks[builder.id] = BackupCheck(check_at, base)
        uow.backup_checks.record(checks)
        return len(due)

    def _plan_backup(
        self, uow: UnitOfWork, builder: Builder, found: Sequence[Backup], now: datetime
    ) -> datetime | None:
        """Plan the builder's backup if it is due; return when it will be, None if a change has it looked at again."""
        if any(one.is_open for one in found):
            return None
        due = _backup_due_at(builder, found)
        if due > now:
            return due
        if not builder.disk_is_made:
            # One that failed before its first disk, or whose disk was given back: a new disk has it looked at again.
            return None
        if builder.status is Status.CREATING:
            return now + timedelta(seconds=PLAN_INTERVAL)
        backups.plan(uow, self._app, builder, BackupKind.SCHEDULED, SYSTEM, now)
        return None

    def _plan_drill(
        self, uow: UnitOfWork, found: Sequence[Backup], last: datetime | None, now: datetime
    ) -> datetime | None:
        """Plan a drill if it is due; return since when the backups are untried, None after a change of them."""
        every = self._drill_interval
        done = [one for one in found if one.status is BackupStatus.DONE and one.expires_at is None]
        if not done:
            return None
        base = max((one.drilled_at for one in done if one.drilled_at), default=done[-1].created_at)
        if last is not None:
            base = max(base, last + min(DRILL_RETRY, every) - every)
        if not every or now - base < every:
            return base
        restores.drill(uow, self._app, done[0], SYSTEM, now)
        return None

    # What is planned

    async def begin_open(self) -> None:
        """Start a task for each planned backup and restore that has none."""
        owner, now = self._app.instance, self._app.clock.now()
        opened = await self._app.store.read(lambda uow: (uow.backups.open(owner), uow.restores.open(owner)))
        for backup in opened[0]:
            if not _is_put_off(backup, now):
                self._begin(backup.id, self._run_backup(backup.id))
        for restore in opened[1]:
            self._begin(restore.id, self._carry_out(restore.id))

    def _begin(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        if name in self._tasks:
            work.close()
            return
        task = self._tasks[name] = asyncio.create_task(self._guarded(work))
        task.add_done_callback(lambda _: self._tasks.pop(name, None))

    # Since either was found to be open, an earlier task may have ended it: only what is recorded now counts.

    async def _run_backup(self, backup_id: BackupId) -> None:
        backup = await self._app.store.read(lambda uow: uow.backups.get(backup_id))
        if backup is None or _is_put_off(backup, self._app.clock.now()):
            return
        if backup.is_open:
            await take(self.context, backup)
        elif backup.copy is not None:
            await self.context.drop_copy(backup)

    async def _carry_out(self, restore_id: RestoreId) -> None:
        restore = await self._app.store.read(lambda uow: uow.restores.get(restore_id))
        if restore is not None and restore.is_open:
            await carry_out(self.context, restore)

    async def idle(self) -> bool:
        """Return whether no task was running; otherwise wait for the running ones and return False."""
        running = list(self._tasks.values())
        await asyncio.gather(*running, return_exceptions=True)
        return not running


def _is_put_off(backup: Backup, now: datetime) -> bool:
    """Return whether the backup failed and its retry is not due yet."""
    return backup.retry_at is not None and backup.retry_at > now


def _backup_due_at(builder: Builder, found: Sequence[Backup]) -> datetime:
    """Return when the builder's next scheduled backup is due. ``found``: its backups, newest first.

    A damaged backup counts as failed.
    """
    tried = [one for one in found if one.kind is not BackupKind.BEFORE_RESTORE]
    bad = (one.status is BackupStatus.FAILED or bool(one.fault) for one in tried)
    failures = sum(1 for _ in itertools.takewhile(bool, bad))
    newest = tried[0] if tried else None
    return due_at(builder.backup_interval_hours, newest, failures, builder.created_at)
