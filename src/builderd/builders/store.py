"""Builders in SQL; their leases are in ``claims``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from decimal import Decimal
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    ColumnElement,
    Enum,
    Integer,
    RowMapping,
    Select,
    Text,
    and_,
    bindparam,
    case,
    cast,
    exists,
    func,
    insert,
    literal,
    literal_column,
    not_,
    select,
    text,
    union,
    update,
)

from builderd.backups.store import CHECK_AT_AFTER_SAVE
from builderd.builders.claims import Claims, is_held
from builderd.builders.model import Builder, Candidate, Cause, Desired, JobType, Status, Visibility
from builderd.builders.table import ACTIVE, CAPPED, LIVE, builders
from builderd.core.errors import NameTaken
from builderd.core.ids import BuilderId, DiskId, TenantId
from builderd.core.resources import Allocation
from builderd.database.repository import UNDECODABLE, Transaction, batches, damage_named, read_each
from builderd.database.types import ExactDecimal, UtcDateTime, omit, row_of
from builderd.money.store import ledger
from builderd.previews.model import RoutedBuilder
from builderd.sandboxes.store import sandboxes
from builderd.versions.model import VersionStatus
from builderd.versions.store import versions


@dataclass(frozen=True, slots=True)
class BuilderQuery:
    """Filters and page of a list without deleted builders. ``search`` is a part of the name.

    ``sort``: ``created_at``, ``-created_at``, ``-updated_at`` or ``name``.
    """

    name: str | None = None
    search: str | None = None
    status: Status | None = None
    job_type: JobType | None = None
    sort: str = "-created_at"
    page: int = 1
    per_page: int = 25


_kept = builders.c.status != Status.DELETED
_oldest_first = (builders.c.created_at, builders.c.id)

_INSERT = insert(builders)
_reserved_disk = (
    select(versions.c.disk)
    .where(versions.c.builder_id == builders.c.id, versions.c.number == bindparam("of_version", type_=Integer))
    .scalar_subquery()
)
_UPDATE = (
    update(builders)
    .where(builders.c.id == bindparam("builder"))
    .values(reserved_disk=func.coalesce(_reserved_disk, 0.0), backup_check_at=CHECK_AT_AFTER_SAVE)
)
_FIELDS = tuple(field.name for field in fields(Builder))
_SPARE_DISKS, _CANDIDATE, _CAUSE, _SCALE = (
    _FIELDS.index(name) for name in ("spare_disks", "candidate", "cause", "scale")
)
#: The column of each field; the second column of a field that has two comes at the end.
_NAMES = tuple("desired_by" if name == "cause" else name for name in _FIELDS)
# In the order of the fields: a row becomes its value without a look at names, which takes most of the time for many.
BUILDER_COLUMNS = tuple(builders.c[name] for name in (*_NAMES, "candidate_disk", "opens_with", "desired_reason"))
_SELECT = select(*BUILDER_COLUMNS)
_LIVE = _SELECT.where(text(LIVE))
# As expressions, which no index has: SQLite plans without statistics, and would read the index of all live builders, or
# of all of a tenant, where that of a few is meant.
_not_deleted = func.coalesce(builders.c.desired, "") != Desired.DELETED.value
_tenant_of_few = func.coalesce(builders.c.tenant_id, "")
_BY_ID = _SELECT.where(builders.c.id == bindparam("id"))
_BY_IDS = _SELECT.where(builders.c.id.in_(bindparam("ids", expanding=True)))
_OWNER = select(builders.c.tenant_id).where(builders.c.id == bindparam("id"), text(LIVE))
_LIVE_HOSTS = select(builders.c.host).where(text(LIVE))
_ROUTED = select(*(builders.c[name] for name in RoutedBuilder._fields)).where(
    text(LIVE), builders.c.host.in_(bindparam("hosts", expanding=True))
)
_BY_NAME = _LIVE.where(builders.c.tenant_id == bindparam("tenant"), builders.c.name == bindparam("name"))
_BY_HOST = _LIVE.where(builders.c.host == bindparam("host"))
_BY_HOSTS = _LIVE.where(builders.c.host.in_(bindparam("hosts", expanding=True)))
_BY_SERVICE_TOKEN = _LIVE.where(builders.c.service_token == bindparam("service_token"))
_OF_TENANT = _SELECT.where(builders.c.tenant_id == bindparam("tenant")).order_by(*_oldest_first)
_LIVE_OF_TENANT = _OF_TENANT.where(text(LIVE))
_active = text(f"({ACTIVE})")
_RUNNING_OF_TENANT = _SELECT.where(
    _active, _tenant_of_few == bindparam("tenant"), builders.c.desired == Desired.RUNNING
).order_by(*_oldest_first)
_CAPPED_OF_TENANT = _SELECT.where(text(CAPPED), _not_deleted, _tenant_of_few == bindparam("tenant")).order_by(
    *_oldest_first
)
_ANY_CAPPED = select(builders.c.id).where(text(CAPPED), _not_deleted, _tenant_of_few == bindparam("tenant")).limit(1)
_MAY_IDLE = _SELECT.where(
    _active,
    builders.c.status == Status.RUNNING,
    builders.c.desired == Desired.RUNNING,
    builders.c.auto_stop_interval > 0,
)
_IDS = select(builders.c.id).where(_kept).order_by(*_oldest_first)
_HOSTS = select(builders.c.host, builders.c.id).where(_kept)
_TENANTS = select(builders.c.tenant_id).where(_kept).distinct().order_by(builders.c.tenant_id)
# A JSON column has no operator for equality on PostgreSQL.
_no_spare_disks = func.coalesce(cast(builders.c.spare_disks, Text), "[]").in_(("[]", "null"))
_at_rest = and_(
    builders.c.desired == Desired.STOPPED,
    builders.c.status.in_((Status.STOPPED, Status.FAILED, Status.COMPLETED)),
    builders.c.observed_generation == builders.c.generation,
    builders.c.candidate.is_(None),
    builders.c.handover.is_(None),
    _no_spare_disks,
)
_LOCATED = (
    select(builders.c.id).where(text(LIVE), text("location <> ''"), builders.c.location == bindparam("at"))
).order_by(builders.c.id)
_UNLOCATED = select(builders.c.disk, builders.c.id).where(text(LIVE), builders.c.location == "")
_RESTLESS = union(
    select(builders.c.id).where(_kept, not_(_at_rest)),
    select(sandboxes.c.builder_id).where(text("end_cause IS NULL")),
)
_was_up = exists().where(
    versions.c.builder_id == builders.c.id,
    versions.c.status.in_((VersionStatus.DEPLOYED, VersionStatus.DROPPED)),
)
_is_open = exists().where(
    sandboxes.c.builder_id == builders.c.id, sandboxes.c.end_cause.is_(None), sandboxes.c.trial.is_(False)
)
_FAILED = (
    select(builders.c.id)
    .where(builders.c.status == Status.FAILED, builders.c.desired == Desired.STOPPED)
    .where(builders.c.disk_released_at.is_(None), builders.c.updated_at < bindparam("before"))
    .where(builders.c.candidate.is_(None), not_(builders.c.disk_has_data), not_(_was_up), not_(_is_open))
    .order_by(builders.c.updated_at)
    .limit(bindparam("limit"))
)
_COUNT_BY_STATUS = select(builders.c.status, func.count().label("number")).where(_kept).group_by(builders.c.status)
#: Key of the advisory lock held by a transaction that admits new demand.
DEMAND_LOCK = 0x6264_6465_6D61_6E64
_LOCK_DEMAND = select(func.pg_advisory_xact_lock(literal(DEMAND_LOCK, BigInteger)))
_runs = builders.c.desired == Desired.RUNNING
# During a deployment both versions count, the serving one and its candidate: the greater need of the two is reserved.
_candidates = versions.alias()


def _greater(serving: ColumnElement[float], candidate: ColumnElement[float]) -> ColumnElement[float]:
    return case((candidate > serving, candidate), else_=serving)  # no candidate: NULL is not greater


def _of_running(name: str) -> ColumnElement[float]:
    return _greater(case((_runs, versions.c[name]), else_=0.0), _candidates.c[name]) * (1 + builders.c.further)


#: Parts of a GB in which disks are summed: a sum of binary fractions depends on its order.
UNITS = 1_000_000_000
_units = cast(func.round(builders.c.reserved_disk * float(UNITS)), BigInteger)
_LIVE_SUMS = select(func.count(), cast(func.coalesce(func.sum(_units), 0), BigInteger)).where(text(LIVE))
_ACTIVE_SUMS = (
    select(
        func.coalesce(func.sum(1 + builders.c.further), 0).label("running_builders"),
        func.coalesce(func.sum(_of_running("cpu")), 0.0).label("cpu"),
        func.coalesce(func.sum(_of_running("memory")), 0.0).label("memory"),
        func.coalesce(func.sum(_greater(versions.c.disk, _candidates.c.disk) - versions.c.disk), 0.0).label("disk"),
    )
    .select_from(
        builders.join(
            versions, and_(versions.c.builder_id == builders.c.id, versions.c.number == builders.c.version)
        ).outerjoin(
            _candidates, and_(_candidates.c.builder_id == builders.c.id, _candidates.c.number == builders.c.candidate)
        )
    )
    .where(_active, _not_deleted)
)
_HELD = _BY_ID.where(is_held)
# An insert that only refers to the row by a foreign key does not wait for this lock.
_LOCKED = {plain: plain.with_for_update(key_share=True) for plain in (_BY_ID, _BY_HOST, _HELD)}
#: Words for damaged ones of a builder that is deleted; of other columns, the first.
_WORDS = (Status.FAILED, Desired.STOPPED, Visibility.PRIVATE)


class Builders(Claims):
    """Builders and their leases. Only a write transaction locks rows."""

    def __init__(self, transaction: Transaction) -> None:
        super().__init__(transaction)
        self._own: set[BuilderId] = set()
        #: Locked rows as they were read or saved last: nobody else can change them until the transaction ends.
        self._known: dict[BuilderId, Builder] = {}

    def add(self, builder: Builder) -> None:
        """Add it. Raises ``NameTaken`` (with the other's uuid) if the tenant has a live builder of that name."""
        other = self.by_name(builder.tenant_id, builder.name)
        if other is not None:
            raise NameTaken(
                f"The name {builder.name!r} is taken by your builder {other.id}: "
                "choose another name, or change that builder instead.",
                data={"uuid": other.id},
            )
        self._change(_INSERT, **_row(builder), backup_check_at=builder.created_at)
        self._own.add(builder.id)

    def get(self, builder: BuilderId, *, lock: bool = False) -> Builder | None:
        """Return it. ``lock`` makes other writers of this row wait until the unit of work ends."""
        return self._known.get(builder) or self._one(_BY_ID, {"id": builder}, lock=lock)

    def get_held(self, builder: BuilderId, owner: str, now: datetime) -> Builder | None:
        """Return it, locked, if the claim is this owner's and has not expired; needs a unit of work that writes."""
        return self._one(_HELD, {"id": builder, "owner": owner, "now": now}, lock=True)

    def owner_of_live(self, builder: BuilderId) -> TenantId | None:
        """Return the tenant of a live builder; of its row no other value is decoded."""
        found: TenantId | None = self._connection.scalar(_OWNER, {"id": builder})
        return found

    def replace_undecodable(self, builder: BuilderId, now: datetime) -> None:
        """Overwrite values that cannot be decoded in the rows of a builder, so that it can be deleted."""
        dialect = self._connection.dialect
        for table in (builders, versions, sandboxes, ledger):
            key = tuple(table.primary_key)
            typed = [one for one in table.c if isinstance(one.type, Enum | JSON | UtcDateTime | ExactDecimal)]
            raw: list[Any] = [literal_column(one.name) for one in (*key, *typed)]
            is_of = table.c["id" if table is builders else "builder_id"] == builder
            for row in self._connection.execute(select(*raw).select_from(table).where(is_of)).all():
                replaced: dict[str, Any] = {}
                for column, value in zip(typed, row[len(key) :], strict=True):
                    decode = column.type.dialect_impl(dialect).result_processor(dialect, None)
                    try:
                        if decode is not None:
                            decode(value)
                    except UNDECODABLE:
                        if isinstance(column.type, UtcDateTime):
                            replaced[column.key] = now
                        elif column.nullable:
                            replaced[column.key] = None
                        elif isinstance(column.type, Enum):
                            words: Sequence[str] = column.type.enums
                            replaced[column.key] = next((word for word in words if word in _WORDS), words[0])
                        else:
                            replaced[column.key] = {} if isinstance(column.type, JSON) else Decimal(0)
                if replaced:
                    is_it = [one == value for one, value in zip(key, row, strict=False)]
                    self._connection.execute(update(table).where(*is_it).values(replaced))

    def get_all(self, builders: Sequence[BuilderId]) -> Mapping[BuilderId, Builder]:
        """Return those of these builders that are stored, by id.

        Like every list, it leaves out those whose row cannot be decoded; a single one raises ``RecordDamaged``.
        """
        found: dict[BuilderId, Builder] = {}
        for some in batches(builders):
            found.update((one.id, one) for one in read_each(self._connection, _BY_IDS, {"ids": some}, read_builder))
        return found

    def by_name(self, tenant: TenantId, name: str) -> Builder | None:
        """Return the live builder of that name."""
        return self._one(_BY_NAME, {"tenant": tenant, "name": name})

    def by_host(self, host: str, *, lock: bool = False) -> Builder | None:
        """Return the live builder whose preview has this host name."""
        return self._one(_BY_HOST, {"host": host}, lock=lock)

    def by_hosts(self, hosts: Sequence[str]) -> Mapping[str, Builder]:
        """Return the live builders whose previews have these host names, by host name."""
        found: dict[str, Builder] = {}
        for some in batches(hosts):
            read = read_each(self._connection, _BY_HOSTS, {"hosts": some}, read_builder)
            found.update((one.host, one) for one in read)
        return found

    def by_service_token(self, service_token: str) -> Builder | None:
        """Return the live builder that this token belongs to."""
        return self._one(_BY_SERVICE_TOKEN, {"service_token": service_token})

    def of_tenant(self, tenant: TenantId, *, deleted: bool) -> Sequence[Builder]:
        """Return a tenant's builders, oldest first, with or without the deleted ones."""
        statement = _OF_TENANT if deleted else _LIVE_OF_TENANT
        return read_each(self._connection, statement, {"tenant": tenant}, read_builder)

    def running(self, tenant: TenantId) -> Sequence[Builder]:
        """Return a tenant's builders that should run, oldest first."""
        return read_each(self._connection, _RUNNING_OF_TENANT, {"tenant": tenant}, read_builder)

    def capped(self, tenant: TenantId) -> Sequence[Builder]:
        """Return a tenant's live builders with a spending cap of their own, oldest first."""
        return read_each(self._connection, _CAPPED_OF_TENANT, {"tenant": tenant}, read_builder)

    def any_capped(self, tenant: TenantId) -> bool:
        """Return True if the tenant has a live builder with a spending cap of its own."""
        return self._connection.execute(_ANY_CAPPED, {"tenant": tenant}).first() is not None

    def ids(self) -> Sequence[BuilderId]:
        """Return the ids of all tenants' builders that are not deleted."""
        return self._connection.scalars(_IDS).all()

    def live_hosts(self) -> Sequence[str]:
        """Return the host names of the previews of all tenants' live builders."""
        return self._connection.scalars(_LIVE_HOSTS).all()

    def routed(self, hosts: Sequence[str]) -> Sequence[RoutedBuilder]:
        """Return those live builders whose previews have these host names, as far as routes follow from them."""
        found: list[RoutedBuilder] = []
        for some in batches(hosts):
            rows = self._connection.execute(_ROUTED, {"hosts": some})
            found += (RoutedBuilder._make(row) for row in rows)
        return found

    def hosts(self) -> Mapping[str, BuilderId]:
        """Return the ids of all tenants' builders that are not deleted, by the host name of their preview."""
        return {row.host: row.id for row in self._connection.execute(_HOSTS)}

    def tenants(self) -> Sequence[TenantId]:
        """Return the tenants with a builder that is not deleted."""
        return self._connection.scalars(_TENANTS).all()

    def located(self, location: str) -> Sequence[BuilderId]:
        """Return the builders that are not deleted and live on this member of the cluster."""
        return self._connection.scalars(_LOCATED, {"at": location}).all()

    def unlocated(self) -> Mapping[DiskId, BuilderId]:
        """Return the builders that are not deleted and whose member is not recorded, by their disk."""
        return {row.disk: row.id for row in self._connection.execute(_UNLOCATED)}

    def restless(self) -> Sequence[BuilderId]:
        """Return the builders that are not at rest, of all tenants.

        A builder is at rest when it is stopped as it should be, without a sandbox, a candidate or a disk to remove.
        """
        return self._connection.scalars(_RESTLESS).all()

    def count_by_status(self, tenant: TenantId | None = None) -> Mapping[Status, int]:
        """Count the builders of a tenant, or of all, that are not deleted."""
        counted = _COUNT_BY_STATUS
        if tenant is not None:
            counted = counted.where(builders.c.tenant_id == tenant).where(text(LIVE))
        rows = self._connection.execute(counted)
        return {row.status: row.number for row in rows}

    def lock_demand(self) -> None:
        """Make other units of work that reserve capacity wait until this one ends."""
        # SQLite needs no lock: it has one writer.
        if self._connection.dialect.name == "postgresql":
            self._connection.execute(_LOCK_DEMAND)

    def allocated(self, tenant: TenantId | None = None) -> Allocation:
        """Return what is reserved for the live builders of a tenant, or of all."""
        of_live = _LIVE_SUMS if tenant is None else _LIVE_SUMS.where(builders.c.tenant_id == tenant)
        number, units = self._connection.execute(of_live).one()
        active = self._active_sums(tenant)
        return Allocation(**{**active, "builders": number, "disk": units / UNITS + active["disk"]})

    def allocated_to_running(self, tenant: TenantId | None = None) -> Allocation:
        """Return ``allocated`` without builders and disks: of those that run alone."""
        return Allocation(**{**self._active_sums(tenant), "disk": 0})

    def _active_sums(self, tenant: TenantId | None) -> RowMapping:
        of_active = _ACTIVE_SUMS if tenant is None else _ACTIVE_SUMS.where(_tenant_of_few == tenant)
        return self._connection.execute(of_active).mappings().one()

    def idle_candidates(self) -> Sequence[Builder]:
        """Return all tenants' builders that run, should run, and have an auto-stop interval."""
        return read_each(self._connection, _MAY_IDLE, {}, read_builder)

    def failed(self, before: datetime, limit: int) -> Sequence[BuilderId]:
        """Return builders that failed before this time, never were up, and have a disk; the longest failed first."""
        return self._connection.scalars(_FAILED, {"before": before, "limit": limit}).all()

    def save(self, builder: Builder) -> None:
        """Replace the row, except its claim. Raises ``RuntimeError`` unless this unit of work added or locked it."""
        if builder.id not in self._own:
            raise RuntimeError(f"builder {builder.id} is saved unlocked: a concurrent change could be lost")
        key = {
            "builder": builder.id,
            # No version has the number 0: a builder whose disk was given back has none reserved.
            "of_version": builder.version if builder.disk_released_at is None else 0,
            "of_interval": builder.backup_interval_hours,
            "of_made": builder.disk_is_made,
        }
        # Only the columns that changed, and those that are computed: all of them take longer than the rest of a save.
        row = omit(_row(builder), "id")
        if (known := self._known.get(builder.id)) is not None:
            before = _row(known)
            row = {name: value for name, value in row.items() if value != before[name]}
        self._change(_UPDATE, **key, **row)
        self._known[builder.id] = builder

    def _one(self, statement: Select[Any], values: Mapping[str, Any], *, lock: bool = False) -> Builder | None:
        locks = lock and self._locks
        with damage_named(lambda: str(self._connection.scalar(select(statement.subquery().c.id), values))):
            row = self._connection.execute(_LOCKED[statement] if locks else statement, values).first()
            found = None if row is None else read_builder(row)
        if found is not None and locks:
            self._own.add(found.id)
            self._known[found.id] = found
        return found


def _row(builder: Builder) -> dict[str, Any]:
    row, candidate = row_of(builder), builder.candidate
    cause: Cause = row.pop("cause")
    return {
        **row,
        "spare_disks": list(builder.spare_disks),
        "scale": dict(builder.scale),
        "further": builder.further,
        "desired_by": cause.actor,
        "desired_reason": cause.reason,
        "candidate": candidate.version if candidate else None,
        "candidate_disk": candidate.disk if candidate else None,
        "opens_with": candidate.version if candidate and candidate.opens else None,
    }


def read_builder(row: Sequence[Any]) -> Builder:
    """Return the builder of a row, or part of one, that begins with ``BUILDER_COLUMNS``."""
    values = list(row)
    reason, opens_with, disk = values.pop(), values.pop(), values.pop()
    values[_SPARE_DISKS] = tuple(values[_SPARE_DISKS] or ())
    values[_SCALE] = values[_SCALE] or {}
    values[_CAUSE] = Cause(values[_CAUSE], reason)
    number = values[_CANDIDATE]
    values[_CANDIDATE] = None if number is None else Candidate(number, disk, opens_with == number)
    return Builder(*values)
