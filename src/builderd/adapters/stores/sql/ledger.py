"""The ledger in SQL."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime

from sqlalchemy import Connection, RowMapping, bindparam, case, insert, select, update

from builderd.adapters.stores.sql.tables import ledger
from builderd.domain.ids import BuilderId
from builderd.domain.prices import Segment

_at = bindparam("at", type_=ledger.c.ended_at.type)

_INSERT = insert(ledger)
_SELECT = select(ledger).order_by(ledger.c.started_at, ledger.c.id)
_OF_BUILDER = _SELECT.where(ledger.c.builder_id == bindparam("builder"))
_OF_BUILDERS = _SELECT.where(ledger.c.builder_id.in_(bindparam("builders", expanding=True)))
_CURRENT = _OF_BUILDER.where(ledger.c.ended_at.is_(None))
_CLOSE = (
    update(ledger)
    .where(ledger.c.builder_id == bindparam("builder"), ledger.c.ended_at.is_(None))
    .values(ended_at=case((ledger.c.started_at > _at, ledger.c.started_at), else_=_at))
)

#: So many builders are asked for in one statement: SQLite takes 32,766 parameters, PostgreSQL 65,535.
BATCH = 10_000


class Ledger:
    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def open(self, segment: Segment) -> None:
        row = {
            "tenant_id": segment.tenant_id,
            "builder_id": segment.builder_id,
            "billing": segment.billing,
            "started_at": segment.start,
            "ended_at": segment.end,
            "hourly_rate": segment.hourly_rate,
        }
        self._connection.execute(_INSERT, row)

    def close(self, builder: BuilderId, at: datetime) -> None:
        self._connection.execute(_CLOSE, {"builder": builder, "at": at})

    def current(self, builder: BuilderId) -> Segment | None:
        row = self._connection.execute(_CURRENT, {"builder": builder}).mappings().first()
        return _segment(row) if row else None

    def of_builder(self, builder: BuilderId) -> Sequence[Segment]:
        return [_segment(row) for row in self._connection.execute(_OF_BUILDER, {"builder": builder}).mappings()]

    def of_builders(self, builders: Sequence[BuilderId]) -> Mapping[BuilderId, Sequence[Segment]]:
        found: dict[BuilderId, list[Segment]] = {}
        for start in range(0, len(builders), BATCH):
            batch = {"builders": builders[start : start + BATCH]}
            for row in self._connection.execute(_OF_BUILDERS, batch).mappings():
                found.setdefault(row["builder_id"], []).append(_segment(row))
        return found


def _segment(row: RowMapping) -> Segment:
    return Segment(
        tenant_id=row["tenant_id"],
        builder_id=row["builder_id"],
        billing=row["billing"],
        start=row["started_at"],
        end=row["ended_at"],
        hourly_rate=row["hourly_rate"],
    )
