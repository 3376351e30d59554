"""Backups, their restores and keys, and when the schedule looks at builders again."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    BigInteger,
    Column,
    ColumnElement,
    Connection,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    Select,
    Table,
    Text,
    and_,
    bindparam,
    case,
    delete,
    exists,
    func,
    literal,
    or_,
    select,
    text,
    update,
)

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
from builderd.builders.table import BACKED_UP, LIVE, builders
from builderd.core.errors import Conflict
from builderd.core.ids import BackupId, BuilderId, RestoreId, TenantId
from builderd.database.columns import builder_columns, document, index_where, metadata, version_key
from builderd.database.connection import Kind
from builderd.database.repository import Queries, Repository, batches
from builderd.database.types import ForeignText, UtcDateTime, enum_column
from builderd.tokens.tenants import tenants

#: A backup that is to be taken or saved, or has a copy of the disk to delete.
UNFINISHED = "status IN ('planned', 'held') OR copy IS NOT NULL"
#: A backup whose last drill found a fault.
DAMAGED = "fault <> ''"

backups = Table(
    "backups",
    metadata,
    Column("id", Text, primary_key=True),
    *builder_columns(),
    Column("builder_name", Text, nullable=False),
    Column("version", Integer, nullable=False),
    Column("kind", enum_column(BackupKind), nullable=False),
    Column("status", enum_column(BackupStatus), nullable=False, index=True),
    Column("actor", ForeignText, nullable=False),
    Column("owner", Text, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("copy", Text),
    Column("finished_at", UtcDateTime),
    Column("snapshot", Text),
    Column("files", BigInteger, nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("added_bytes", BigInteger, nullable=False),
    Column("error", ForeignText, nullable=False),
    Column("expires_at", UtcDateTime, index=True),
    Column("retry_at", UtcDateTime),
    Column("drilled_at", UtcDateTime),
    Column("verified_at", UtcDateTime),
    Column("fault", ForeignText, nullable=False),
    Column("hindrance", document()),
    version_key("backups"),
    Index("ix_backups_builder_id_created_at", "builder_id", "created_at"),
    Index("ix_backups_tenant_id_created_at", "tenant_id", "created_at"),
    index_where("ix_backups_unfinished", UNFINISHED, "owner"),
    index_where("ix_backups_damaged", DAMAGED, "id"),
)

restores = Table(
    "restores",
    metadata,
    Column("id", Text, primary_key=True),
    *builder_columns(),
    Column("backup_id", Text, ForeignKey("backups.id"), nullable=False, index=True),
    Column("kind", enum_column(RestoreKind), nullable=False),
    Column("status", enum_column(RestoreStatus), nullable=False, index=True),
    Column("actor", ForeignText, nullable=False),
    Column("owner", Text, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("disk", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("safety", Text),
    Column("made", Text),
    Column("number", Integer),
    Column("finished_at", UtcDateTime),
    Column("error", ForeignText, nullable=False),
    Column("hindrance", document()),
)

backup_keys = Table(
    "backup_keys",
    metadata,
    Column("tenant_id", Text, ForeignKey("tenants.id"), primary_key=True),
    Column("sealed", LargeBinary, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("checked_at", UtcDateTime, nullable=False),
    Column("pruned_at", UtcDateTime, nullable=False),
    Column("forgotten_at", UtcDateTime),
    Column("fault", ForeignText, nullable=False),
)


_c = backups.c
_newest_first = (_c.created_at.desc(), _c.id)


def _newest(*conditions: ColumnElement[bool]) -> Select[Any]:
    """Return the statement for the newest backup of each builder. Made once: it takes longer than to run it."""
    wanted = and_(backups.c.builder_id.in_(bindparam("builders", expanding=True)), *conditions)
    newest = (
        select(backups.c.builder_id, func.max(backups.c.created_at).label("at"))
        .where(wanted)
        .group_by(backups.c.builder_id)
        .subquery()
    )
    same = (backups.c.builder_id == newest.c.builder_id) & (backups.c.created_at == newest.c.at)
    return select(backups).join(newest, wanted & same)


_wanting = (text(f"builders.{BACKED_UP}"), text(f"builders.{LIVE}"))
_of_wanting = backups.c.builder_id == builders.c.id
_tries = backups.alias()
_last_try = (
    select(func.max(_tries.c.created_at)).where(_tries.c.builder_id == builders.c.id).correlate(builders)
).scalar_subquery()
_failed = or_(backups.c.status == BackupStatus.FAILED, backups.c.error != "")
_COUNT_FAILING = (
    select(func.count())
    .select_from(builders)
    .where(*_wanting, exists().where(_of_wanting, _failed, backups.c.created_at == _last_try))
)
_last_good = (
    select(func.max(backups.c.created_at)).where(_of_wanting, backups.c.status == BackupStatus.DONE).scalar_subquery()
)
_last_goods = select(_last_good.label("at")).select_from(builders).where(*_wanting).subquery()

_NEWEST = _newest()
_NEWEST_WITH_STATUS = _newest(backups.c.status == bindparam("status", type_=backups.c.status.type))


class Backups(Repository[Backup]):
    # The builder's row is locked first, as it is by all who change a builder and then its backups.

    _table, _record, _kind = backups, Backup, Kind.BACKUPS

    def add(self, value: Backup) -> None:
        clear(self._connection, value.builder_id)
        super().add(value)

    def save(self, value: Backup) -> None:
        clear(self._connection, value.builder_id)
        super().save(value)

    def get(self, backup: BackupId) -> Backup | None:
        return self._first(select(backups).where(_c.id == backup))

    def delete(self, backup: BackupId) -> None:
        """Delete it with its restores. Idempotent."""
        # The schedule looks at the backup's builder.
        builder = select(_c.builder_id).where(_c.id == backup).scalar_subquery()
        self._connection.execute(update(builders).where(_row.id == builder).values(backup_check_at=AT_ONCE))
        self._change(delete(restores).where(restores.c.backup_id == backup))
        self._change(delete(backups).where(_c.id == backup))

    def of_builder(self, builder: BuilderId) -> Sequence[Backup]:
        """Return the builder's backups, newest first."""
        return self._all(select(backups).where(_c.builder_id == builder).order_by(*_newest_first))

    def of_builders(self, builders: Sequence[BuilderId]) -> Mapping[BuilderId, Sequence[Backup]]:
        """Return the backups of each of these builders, newest first."""
        found: dict[BuilderId, list[Backup]] = {one: [] for one in builders}
        for some in batches(builders):
            for backup in self._all(select(backups).where(_c.builder_id.in_(some)).order_by(*_newest_first)):
                found[backup.builder_id].append(backup)
        return found

    def of_tenant(self, tenant: TenantId) -> Sequence[Backup]:
        """Return the tenant's backups, newest first."""
        return self._all(select(backups).where(_c.tenant_id == tenant).order_by(*_newest_first))

    def open(self, owner: str) -> Sequence[Backup]:
        """Return the owner's backups that are to be taken or saved, or have a copy to delete, oldest first."""
        found = select(backups).where(_c.owner == owner, text(f"({UNFINISHED})"))
        return self._all(found.order_by(_c.created_at, _c.id))

    def newest_of(
        self, builders: Sequence[BuilderId], status: BackupStatus | None = None
    ) -> Mapping[BuilderId, Backup]:
        """Return each builder's newest backup, or its newest of this status; builders without one are left out."""
        statement = _NEWEST if status is None else _NEWEST_WITH_STATUS
        found: dict[BuilderId, Backup] = {}
        for some in batches(builders):
            newest = self._all(statement, builders=some, status=status)
            found.update((backup.builder_id, backup) for backup in newest)
        return found

    def expired(self, now: datetime) -> Sequence[Backup]:
        """Return those that have expired."""
        return self._all(select(backups).where(_c.expires_at <= now).order_by(_c.expires_at))

    def builders(self, after: str, limit: int) -> Sequence[BuilderId]:
        """Return builders that have backups, in the order of their ids, so many after the given id ("": the first)."""
        found = select(_c.builder_id).where(_c.builder_id > after).distinct().order_by(_c.builder_id)
        return self._connection.scalars(found.limit(limit)).all()

    def has_done(self, tenant: TenantId, now: datetime) -> bool:
        """Return whether the tenant has a backup that is done and has not expired."""
        is_kept = _c.expires_at.is_(None) | (_c.expires_at > now)
        found = exists().where(_c.tenant_id == tenant, _c.status == BackupStatus.DONE, is_kept)
        return bool(self._connection.scalar(select(found)))

    def count_failing(self) -> int:
        """Count the live builders with a backup interval whose newest backup failed."""
        return int(self._connection.execute(_COUNT_FAILING).scalar_one())

    def oldest_last_good(self) -> datetime | None:
        """Return the oldest among the newest done backups of each live builder with a backup interval."""
        at: datetime | None = self._connection.scalar(select(func.min(_last_goods.c.at)))
        return at

    def count_damaged(self) -> int:
        """Count the backups whose last drill failed."""
        return self._connection.execute(select(func.count()).select_from(backups).where(text(DAMAGED))).scalar_one()

    def count_by_status(self) -> Mapping[BackupStatus, int]:
        counted = select(_c.status, func.count().label("number")).group_by(_c.status)
        return {row.status: row.number for row in self._connection.execute(counted)}


_is_open = restores.c.status.in_((RestoreStatus.PLANNED, RestoreStatus.FILLED))
_OPEN_RESTORES = select(restores).where(_is_open).order_by(restores.c.created_at, restores.c.id)


class Restores(Repository[Restore]):
    _table, _record, _kind = restores, Restore, Kind.BACKUPS

    def add(self, value: Restore) -> None:
        clear(self._connection, value.builder_id)
        super().add(value)

    def save(self, value: Restore) -> None:
        clear(self._connection, value.builder_id)
        super().save(value)

    def get(self, restore: RestoreId) -> Restore | None:
        return self._first(select(restores).where(restores.c.id == restore))

    def open(self, owner: str) -> Sequence[Restore]:
        """Return the owner's restores that are not finished, oldest first."""
        return self._all(_OPEN_RESTORES.where(restores.c.owner == owner))

    def open_of(self, builder: BuilderId) -> Sequence[Restore]:
        """Return a builder's restores that are not finished, of any owner, oldest first."""
        return self._all(_OPEN_RESTORES.where(restores.c.builder_id == builder))

    def with_open(self, builders: Sequence[BuilderId]) -> Collection[BuilderId]:
        """Return those of these builders with a restore that is not finished."""
        found = select(restores.c.builder_id).where(_is_open, restores.c.builder_id.in_(builders))
        return set(self._connection.scalars(found))

    def last_drills(self, builders: Sequence[BuilderId]) -> Mapping[BuilderId, datetime]:
        """Return when the newest drill of each builder was requested, finished or not, of a backup that still exists.

        Builders without one are left out.
        """
        found = (
            select(restores.c.builder_id, func.max(restores.c.created_at).label("at"))
            .where(restores.c.builder_id.in_(builders), restores.c.kind == RestoreKind.DRILL)
            .group_by(restores.c.builder_id)
        )
        return {row.builder_id: row.at for row in self._connection.execute(found)}


class BackupKeys(Repository[BackupKey]):
    _table, _record, _key = backup_keys, BackupKey, ("tenant_id",)

    def add(self, value: BackupKey) -> None:
        """Add it. Raises ``Conflict`` if the tenant has one."""
        if self.get(value.tenant_id) is not None:
            raise Conflict("The tenant has a key for its backups already.")
        super().add(value)

    def get(self, tenant: TenantId, *, lock: bool = False) -> BackupKey | None:
        """Return it. ``lock`` makes other writers of this row wait until the unit of work ends."""
        found = select(backup_keys).where(backup_keys.c.tenant_id == tenant)
        return self._first(found.with_for_update(key_share=True) if lock and self._locks else found)

    def lacking(self) -> Sequence[TenantId]:
        """Return the tenants without a key."""
        found = select(tenants.c.id).where(tenants.c.id.not_in(select(backup_keys.c.tenant_id)))
        return self._connection.scalars(found).all()

    def all(self) -> Sequence[BackupKey]:
        return self._all(select(backup_keys).order_by(backup_keys.c.tenant_id))


_row = builders.c
#: Stored for a builder that is to be looked at now.
AT_ONCE = datetime(1970, 1, 1, tzinfo=UTC)
_at_once = literal(AT_ONCE, _row.backup_check_at.type)
#: Value of the column in the ``UPDATE`` of a builder's row: another interval, and a first disk, change when its next
#: backup is due.
CHECK_AT_AFTER_SAVE = case(
    (_row.backup_interval_hours != bindparam("of_interval", type_=_row.backup_interval_hours.type), _at_once),
    (_row.disk_is_made != bindparam("of_made", type_=_row.disk_is_made.type), _at_once),
    else_=_row.backup_check_at,
)


def clear(connection: Connection, builder: BuilderId) -> None:
    """Have the schedule look at the builder: one of its backups or restores is about to change."""
    connection.execute(update(builders).where(_row.id == builder).values(backup_check_at=AT_ONCE))


class BackupChecks(Queries):
    """Times at which the schedule looks at builders again. A change of a builder's backups makes it due at once."""

    def due(self, now: datetime, tried_before: datetime | None, limit: int) -> Sequence[BuilderId]:
        """Return live builders with a backup interval that are due for a look, at most so many.

        ``tried_before``: those whose backups were last tried by a drill before are due as well; None: no drills. A unit
        of work that writes locks them, and leaves out those that another one works on.
        """
        wanted = select(_row.id).where(text(BACKED_UP), text(LIVE)).limit(limit)
        found = list(self._connection.scalars(wanted.where(_row.backup_check_at <= now)))
        if tried_before is not None:
            found += self._connection.scalars(wanted.where(_row.drill_base_at <= tried_before))
        ids = sorted(set(found))[:limit]
        if not ids or not self._locks:
            return ids
        # A row that another transaction has is left for the next look: what it changes is not known yet.
        locked = select(_row.id).where(_row.id.in_(ids)).order_by(_row.id)
        return self._connection.scalars(locked.with_for_update(skip_locked=True, key_share=True)).all()

    def record(self, checks: Mapping[BuilderId, BackupCheck]) -> None:
        """Store when each builder, locked by ``due``, is to be looked at again."""
        if checks:
            of = update(builders).where(_row.id == bindparam("builder"))
            times = of.values(backup_check_at=bindparam("check_at"), drill_base_at=bindparam("base_at"))
            rows = [
                {"builder": one, "check_at": at.check_at, "base_at": at.drill_base_at} for one, at in checks.items()
            ]
            self._connection.execute(times, rows)
