"""Times at which the backup schedule looks at a builder again, in SQL: columns of the builder's row.

A change of a builder's backups or restores clears them, with the row locked: the schedule, which locks the row before
it reads them, cannot store a time that does not know of the change.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from sqlalchemy import BindParameter, Connection, bindparam, case, literal, select, text, update

from builderd.domain.backups import BackupCheck
from builderd.domain.ids import BackupId, BuilderId
from builderd.store.tables import BACKED_UP, LIVE, backups, builders

_row = builders.c
#: Stored for a builder that is to be looked at now.
AT_ONCE = datetime(1970, 1, 1, tzinfo=UTC)
_at_once = literal(AT_ONCE, _row.backup_check_at.type)
_wanted = (text(BACKED_UP), text(LIVE))
_now: BindParameter[datetime] = bindparam("now", type_=_row.backup_check_at.type)
_tried_before: BindParameter[datetime] = bindparam("tried_before", type_=_row.drill_base_at.type)
_DUE = select(_row.id).where(*_wanted, _row.backup_check_at <= _now).limit(bindparam("limit"))
_DRILLS_DUE = select(_row.id).where(*_wanted, _row.drill_base_at <= _tried_before).limit(bindparam("limit"))
# A row that another transaction has is left for the next look: what it changes is not known yet.
_LOCKED = (
    select(_row.id)
    .where(_row.id.in_(bindparam("builders", expanding=True)))
    .order_by(_row.id)
    .with_for_update(skip_locked=True, key_share=True)
)
_of_builder = _row.id == bindparam("builder")
_RECORD = (
    update(builders)
    .where(_of_builder)
    .values(backup_check_at=bindparam("check_at"), drill_base_at=bindparam("base_at"))
)
_CLEAR = update(builders).where(_of_builder).values(backup_check_at=_at_once)
_CLEAR_OF_BACKUP = (
    update(builders)
    .where(_row.id == select(backups.c.builder_id).where(backups.c.id == bindparam("backup")).scalar_subquery())
    .values(backup_check_at=_at_once)
)
#: Value of the column in the ``UPDATE`` of a builder's row: another interval, and a first disk, change when its next
#: backup is due.
CHECK_AT_AFTER_SAVE = case(
    (_row.backup_interval_hours != bindparam("of_interval", type_=_row.backup_interval_hours.type), _at_once),
    (_row.disk_is_made != bindparam("of_made", type_=_row.disk_is_made.type), _at_once),
    else_=_row.backup_check_at,
)


def clear(connection: Connection, builder: BuilderId) -> None:
    """Have the schedule look at the builder: one of its backups or restores is about to change."""
    connection.execute(_CLEAR, {"builder": builder})


def clear_of_backup(connection: Connection, backup: BackupId) -> None:
    """Have the schedule look at the backup's builder."""
    connection.execute(_CLEAR_OF_BACKUP, {"backup": backup})


class BackupChecks:
    """Times at which the schedule looks at builders again. A change of a builder's backups makes it due at once."""

    def __init__(self, connection: Connection, *, locks: bool) -> None:
        self._connection = connection
        self._locks = locks

    def due(self, now: datetime, tried_before: datetime | None, limit: int) -> Sequence[BuilderId]:
        """Return live builders with a backup interval that are due for a look, at most so many.

        ``tried_before``: those whose backups were last tried by a drill before are due as well; None: no drills. A unit
        of work that writes locks them, and leaves out those that another one works on.
        """
        found = list(self._connection.execute(_DUE, {"now": now, "limit": limit}).scalars())
        if tried_before is not None:
            values = {"tried_before": tried_before, "limit": limit}
            found += self._connection.execute(_DRILLS_DUE, values).scalars()
        ids = sorted(set(found))[:limit]
        if not ids or not self._locks:
            return ids
        return self._connection.execute(_LOCKED, {"builders": ids}).scalars().all()

    def record(self, checks: Mapping[BuilderId, BackupCheck]) -> None:
        """Store when each builder, locked by ``due``, is to be looked at again."""
        if checks:
            names = ("builder", "check_at", "base_at")
            rows = ((one, check.check_at, check.drill_base_at) for one, check in checks.items())
            self._connection.execute(_RECORD, [dict(zip(names, row, strict=True)) for row in rows])
