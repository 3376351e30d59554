"""Build logs in SQL."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, bindparam, delete, insert, select

from builderd.adapters.stores.sql.rows import row_of
from builderd.adapters.stores.sql.tables import build_logs
from builderd.domain.ids import BuilderId
from builderd.domain.logs import LogLine

_of_builder = build_logs.c.builder_id == bindparam("builder")

_INSERT = insert(build_logs)
_SELECT = select(build_logs).where(_of_builder).order_by(build_logs.c.id)
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

    def delete(self, builder: BuilderId) -> None:
        self._connection.execute(_DELETE, {"builder": builder})
