"""Disks that rows name, by one statement for each table."""

from __future__ import annotations

from collections.abc import Collection

from sqlalchemy import Connection, select, union_all

from builderd.adapters.stores.sql.tables import backups, builders, qa_reports, restores, sandboxes
from builderd.domain.backups import RestoreStatus
from builderd.domain.builders import Status
from builderd.domain.ids import DiskId

_LIVE = builders.c.status != Status.DELETED
_OVER = (RestoreStatus.DONE, RestoreStatus.FAILED)
_ONES = union_all(
    select(builders.c.disk).where(_LIVE),
    select(builders.c.candidate_disk).where(_LIVE, builders.c.candidate_disk.is_not(None)),
    select(sandboxes.c.disk).where(sandboxes.c.end_cause.is_(None)),
    select(backups.c.copy).where(backups.c.copy.is_not(None)),
    select(restores.c.disk).where(restores.c.status.not_in(_OVER)),
    select(qa_reports.c.copy_disk).where(qa_reports.c.copy_disk.is_not(None)),
)
_SPARE = select(builders.c.spare_disks).where(_LIVE, builders.c.spare_disks.is_not(None))


class NamedDisks:
    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def all(self) -> Collection[DiskId]:
        found = {DiskId(disk) for disk in self._connection.execute(_ONES).scalars()}
        for spare in self._connection.execute(_SPARE).scalars():
            found.update(DiskId(disk) for disk in spare or ())
        return found
