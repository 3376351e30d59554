"""Builders in SQL; their leases are in ``claims``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    RowMapping,
    Select,
    and_,
    bindparam,
    case,
    func,
    insert,
    literal,
    or_,
    select,
    text,
    update,
)

from builderd.adapters.stores.sql.claims import Claims
from builderd.adapters.stores.sql.rows import omit, row_of
from builderd.adapters.stores.sql.tables import CLAIM, LIVE, builders, versions
from builderd.domain.builders import Builder, Candidate, Cause, Desired, Status
from builderd.domain.errors import NameTaken
from builderd.domain.ids import BuilderId, TenantId
from builderd.domain.quotas import Allocation
from builderd.ports.store.builders import BuilderQuery

_kept = builders.c.status != Status.DELETED
_oldest_first = (builders.c.created_at, builders.c.id)

_INSERT = insert(builders)
_UPDATE = update(builders).where(builders.c.id == bindparam("builder"))
_SELECT = select(*(column for column in builders.c if column.name not in CLAIM))
_LIVE = _SELECT.where(text(LIVE))
_BY_ID = _SELECT.where(builders.c.id == bindparam("id"))
_BY_NAME = _LIVE.where(builders.c.tenant_id == bindparam("tenant"), builders.c.name == bindparam("name"))
_BY_HOST = _LIVE.where(builders.c.host == bindparam("host"))
_BY_SERVICE_TOKEN = _LIVE.where(builders.c.service_token == bindparam("service_token"))
_OF_TENANT = _SELECT.where(builders.c.tenant_id == bindparam("tenant")).order_by(*_oldest_first)
_LIVE_OF_TENANT = _OF_TENANT.where(text(LIVE))
_BACKED_UP = _LIVE.where(builders.c.backup_interval_hours > 0).order_by(*_oldest_first)
_MAY_IDLE = _SELECT.where(
    builders.c.status == Status.RUNNING, builders.c.desired == Desired.RUNNING, builders.c.auto_stop_interval > 0
)
_IDS = select(builders.c.id).where(_kept).order_by(*_oldest_first)
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
    return _greater(case((_runs, versions.c[name]), else_=0.0), _candidates.c[name])


_DEMAND = (
    select(
        func.count().label("builders"),
        func.coalesce(func.sum(case((or_(_runs, builders.c.candidate.is_not(None)), 1), else_=0)), 0).label(
            "running_builders"
        ),
        func.coalesce(func.sum(_of_running("cpu")), 0.0).label("cpu"),
        func.coalesce(func.sum(_of_running("memory")), 0.0).label("memory"),
        func.coalesce(func.sum(_greater(versions.c.disk, _candidates.c.disk)), 0.0).label("disk"),
    )
    .select_from(
        builders.join(
            versions, and_(versions.c.builder_id == builders.c.id, versions.c.number == builders.c.version)
        ).outerjoin(
            _candidates, and_(_candidates.c.builder_id == builders.c.id, _candidates.c.number == builders.c.candidate)
        )
    )
    .where(text(LIVE))
)
# An insert that only refers to the row by a foreign key does not wait for this lock.
_LOCKED = {plain: plain.with_for_update(key_share=True) for plain in (_BY_ID, _BY_HOST)}

_ORDERS: Mapping[str, tuple[ColumnElement[Any], ...]] = {
    "created_at": (builders.c.created_at.asc(), builders.c.id.asc()),
    "-created_at": (builders.c.created_at.desc(), builders.c.id.desc()),
    "-updated_at": (builders.c.updated_at.desc(), builders.c.id.desc()),
    "name": (builders.c.name.asc(),),
}


class Builders(Claims):
    """Builders and their leases. Only a write transaction locks rows."""

    def __init__(self, connection: Connection, *, locks: bool) -> None:
        super().__init__(connection, locks=locks)
        self._own: set[BuilderId] = set()

    def add(self, builder: Builder) -> None:
        other = self.by_name(builder.tenant_id, builder.name)
        if other is not None:
            raise NameTaken(
                f"The name {builder.name!r} is taken by your builder {other.id}: "
                "choose another name, or change that builder instead.",
                data={"uuid": other.id},
            )
        self._connection.execute(_INSERT, _row(builder))
        self._own.add(builder.id)

    def get(self, builder: BuilderId, *, lock: bool = False) -> Builder | None:
        return self._one(_BY_ID, {"id": builder}, lock=lock)

    def by_name(self, tenant: TenantId, name: str) -> Builder | None:
        return self._one(_BY_NAME, {"tenant": tenant, "name": name})

    def by_host(self, host: str, *, lock: bool = False) -> Builder | None:
        return self._one(_BY_HOST, {"host": host}, lock=lock)

    def by_service_token(self, service_token: str) -> Builder | None:
        return self._one(_BY_SERVICE_TOKEN, {"service_token": service_token})

    def list(self, tenant: TenantId, query: BuilderQuery) -> tuple[Sequence[Builder], int]:
        found = _filtered(tenant, query)
        total = self._connection.execute(select(func.count()).select_from(found.subquery())).scalar_one()
        page = found.order_by(*_ORDERS[query.sort]).limit(query.per_page).offset((query.page - 1) * query.per_page)
        return [_builder(row) for row in self._connection.execute(page).mappings()], total

    def of_tenant(self, tenant: TenantId, *, deleted: bool) -> Sequence[Builder]:
        statement = _OF_TENANT if deleted else _LIVE_OF_TENANT
        return [_builder(row) for row in self._connection.execute(statement, {"tenant": tenant}).mappings()]

    def backed_up(self) -> Sequence[Builder]:
        return [_builder(row) for row in self._connection.execute(_BACKED_UP).mappings()]

    def ids(self) -> Sequence[BuilderId]:
        return self._connection.execute(_IDS).scalars().all()

    def count_by_status(self, tenant: TenantId | None = None) -> Mapping[Status, int]:
        counted = _COUNT_BY_STATUS
        if tenant is not None:
            counted = counted.where(builders.c.tenant_id == tenant).where(text(LIVE))
        rows = self._connection.execute(counted)
        return {row.status: row.number for row in rows}

    def lock_demand(self) -> None:
        # SQLite needs no lock: it has one writer.
        if self._connection.dialect.name == "postgresql":
            self._connection.execute(_LOCK_DEMAND)

    def allocated(self, tenant: TenantId | None = None) -> Allocation:
        statement = _DEMAND if tenant is None else _DEMAND.where(builders.c.tenant_id == tenant)
        return Allocation(**self._connection.execute(statement).mappings().one())

    def idle_candidates(self) -> Sequence[Builder]:
        return [_builder(row) for row in self._connection.execute(_MAY_IDLE).mappings()]

    def save(self, builder: Builder) -> None:
        if builder.id not in self._own:
            raise RuntimeError(f"builder {builder.id} is saved unlocked: a concurrent change could be lost")
        self._connection.execute(_UPDATE, {"builder": builder.id, **omit(_row(builder), "id")})

    def _one(self, statement: Select[Any], values: Mapping[str, str], *, lock: bool = False) -> Builder | None:
        locks = lock and self._locks
        row = self._connection.execute(_LOCKED[statement] if locks else statement, values).mappings().first()
        if row is None:
            return None
        if locks:
            self._own.add(row["id"])
        return _builder(row)


def _filtered(tenant: TenantId, query: BuilderQuery) -> Select[Any]:
    found = _LIVE.where(builders.c.tenant_id == tenant)
    for name in ("name", "status", "job_type"):
        wanted = getattr(query, name)
        if wanted is not None:
            found = found.where(builders.c[name] == wanted)
    if query.search:
        found = found.where(builders.c.name.contains(query.search, autoescape=True))
    return found


def _row(builder: Builder) -> dict[str, Any]:
    row, candidate = row_of(builder), builder.candidate
    cause: Cause = row.pop("cause")
    return {
        **row,
        "spare_disks": list(builder.spare_disks),
        "desired_by": cause.actor,
        "desired_reason": cause.reason,
        "candidate": candidate.version if candidate else None,
        "candidate_disk": candidate.disk if candidate else None,
        "opens_with": candidate.version if candidate and candidate.opens else None,
    }


def _builder(row: RowMapping) -> Builder:
    values = dict(row)
    # A selected column comes by its name, not by its key.
    generation, observed = values.pop("run"), values.pop("settled_run")
    values["spare_disks"] = tuple(values["spare_disks"] or ())
    number, disk, opens_with = (values.pop(name) for name in ("candidate", "candidate_disk", "opens_with"))
    candidate = None if number is None else Candidate(number, disk, opens_with == number)
    cause = Cause(values.pop("desired_by"), values.pop("desired_reason"))
    return Builder(**values, generation=generation, observed_generation=observed, candidate=candidate, cause=cause)
