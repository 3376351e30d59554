"""Build logs in SQL."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import Connection, bindparam, delete, func, insert, select

from builderd.adapters.stores.sql.rows import row_of
from builderd.adapters.stores.sql.tables import build_logs
from builderd.domain.ids import BuilderId
from builderd.domain.logs import LogLine

_of_builder = build_logs.c.builder_id == bindparam("builder")

_INSERT = insert(build_logs)
_SELECT = select(build_logs).where(_of_builder).order_by(build_logs.c.id)
_FOLLOWING = _SELECT.where(build_logs.c.id > bindparam("after"))
_LAST = select(build_logs).where(_of_builder).order_by(build_logs.c.id.desc()).limit(bindparam("limit"))
_LAST_ID = select(func.max(build_logs.c.id)).where(_of_builder)
_OLDEST = select(build_logs.c.id, build_logs.c.time).order_by(build_logs.c.id).limit(bindparam("limit")).subquery()
_EXPIRE = delete(build_logs).where(
    build_logs.c.id.in_(select(_OLDEST.c.id).where(_OLDEST.c.time < bindparam("before", type_=build_logs.c.time.type)))
)
_DELETE = delete(build_logs).where(_of_builder)


class BuildLogs:
    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def add(self, builder: BuilderId, version: int, lines: Sequence[LogLine]) -> None:
        if lines:
            rows = [{"builder_id": builder, "version": version, **row_of(line)} for line in lines]
            self._connection.execute(_INSERT, rows)

    def list(self, builder: BuilderId) -> Sequence[tuple[int, LogLine]]:
        rows = self._connection.execute(_SELECT, {"builder": builder})
        return [(row.version, LogLine(row.time, row.stream, row.text)) for row in rows]

    def last(self, builder: BuilderId, count: int, since: datetime | None = None) -> Sequence[tuple[int, LogLine]]:
        statement = _LAST if since is None else _LAST.where(build_logs.c.time >= since)
        rows = self._connection.execute(statement, {"builder": builder, "limit": count}).all()
        return [(row.version, LogLine(row.time, row.stream, row.text)) for row in reversed(rows)]

    def following(self, builder: BuilderId, after: int) -> Sequence[tuple[int, int, LogLine]]:
        rows = self._connection.execute(_FOLLOWING, {"builder": builder, "after": after})
        return [(row.id, row.version, LogLine(row.time, row.stream, row.text)) for row in rows]

    def last_id(self, builder: BuilderId) -> int:
        return self._connection.execute(_LAST_ID, {"builder": builder}).scalar_one() or 0

    def expire(self, before: datetime, limit: int) -> int:
        return self._connection.execute(_EXPIRE, {"before": before, "limit": limit}).rowcount

    def delete(self, builder: BuilderId) -> None:
        self._connection.execute(_DELETE, {"builder": builder})
