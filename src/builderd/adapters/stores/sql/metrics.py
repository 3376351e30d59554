"""Metrics in SQL: one row per builder and time step, to which readings are added."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, RowMapping, bindparam, case, delete, select
from sqlalchemy.dialects import postgresql, sqlite

from builderd.adapters.stores.sql.rows import row_of
from builderd.adapters.stores.sql.tables import builders, metrics, sandboxes, tenants
from builderd.domain.ids import BuilderId
from builderd.domain.metrics import MAXIMA, SampleTarget, Usage, UsageBucket

_KEY = ("builder_id", "start")
_WATCHED = (
    select(
        builders.c.tenant_id,
        tenants.c.name.label("tenant"),
        builders.c.id.label("builder_id"),
        builders.c.name,
        builders.c.host,
        sandboxes.c.id.label("sandbox_id"),
        sandboxes.c.started_at,
    )
    .select_from(sandboxes)
    .join(builders, builders.c.id == sandboxes.c.builder_id)
    .join(tenants, tenants.c.id == builders.c.tenant_id)
    .where(sandboxes.c.end_cause.is_(None), sandboxes.c.started_at.is_not(None), sandboxes.c.trial.is_(False))
    .order_by(builders.c.id)
)
_OF_BUILDER = (
    select(metrics)
    .where(
        metrics.c.builder_id == bindparam("builder"), metrics.c.start >= bindparam("since", type_=metrics.c.start.type)
    )
    .order_by(metrics.c.start)
)
_EXPIRE = delete(metrics).where(metrics.c.start < bindparam("before", type_=metrics.c.start.type))


class Metrics:
    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def watched(self) -> Sequence[SampleTarget]:
        return [SampleTarget(**row) for row in self._connection.execute(_WATCHED).mappings()]

    def add(self, steps: Sequence[UsageBucket]) -> None:
        if steps:
            upsert = _UPSERTS[self._connection.dialect.name]
            # Sorted by builder, so that concurrent transactions cannot deadlock.
            self._connection.execute(upsert, sorted((_row(step) for step in steps), key=lambda row: row["builder_id"]))

    def of_builder(self, builder: BuilderId, since: datetime) -> Sequence[UsageBucket]:
        rows = self._connection.execute(_OF_BUILDER, {"builder": builder, "since": since}).mappings()
        return [_step(row) for row in rows]

    def expire(self, before: datetime) -> int:
        return self._connection.execute(_EXPIRE, {"before": before}).rowcount


def _upsert(insert: Any) -> Any:
    statement = insert(metrics)
    new, old = statement.excluded, metrics.c
    added = {name: old[name] + new[name] for name in old.keys() if name not in (*_KEY, *MAXIMA)}  # noqa: SIM118
    most = {name: case((old[name] > new[name], old[name]), else_=new[name]) for name in MAXIMA}
    return statement.on_conflict_do_update(index_elements=_KEY, set_={**added, **most})


_UPSERTS = {"sqlite": _upsert(sqlite.insert), "postgresql": _upsert(postgresql.insert)}


def _row(step: UsageBucket) -> dict[str, Any]:
    return {"builder_id": step.builder_id, "start": step.start, **row_of(step.usage)}


def _step(row: RowMapping) -> UsageBucket:
    values = dict(row)
    builder_id, start = (values.pop(name) for name in _KEY)
    return UsageBucket(builder_id, start, Usage(**values))
