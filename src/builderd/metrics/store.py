"""Metrics in SQL: one row per builder and time step, to which readings are added."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import (
    BigInteger,
    Column,
    Double,
    Index,
    RowMapping,
    Table,
    Text,
    bindparam,
    case,
    delete,
    func,
    select,
    text,
)
from sqlalchemy.dialects import postgresql, sqlite

from builderd.builders.table import builders
from builderd.core.ids import BuilderId
from builderd.database.columns import metadata
from builderd.database.repository import Queries
from builderd.database.types import EpochSeconds, UtcDateTime, omit, row_of
from builderd.metrics.model import MAXIMA, Load, SampleTarget, Usage, UsageBucket, response_counts
from builderd.previews.model import RESPONSE_TIMES, TIMED_CLASSES
from builderd.sandboxes.store import sandboxes
from builderd.tokens.tenants import tenants

metrics = Table(
    "metrics",
    metadata,
    # No foreign key: rows expire by age, also those of a deleted builder.
    Column("builder_id", Text, primary_key=True),
    Column("start", UtcDateTime, primary_key=True),
    Column("seconds", Double, nullable=False),
    Column("cpu_seconds", Double, nullable=False),
    Column("memory_byte_seconds", Double, nullable=False),
    Column("memory_most_bytes", BigInteger, nullable=False),
    Column("disk_most_bytes", BigInteger, nullable=False),
    Column("network_in_bytes", BigInteger, nullable=False),
    Column("network_out_bytes", BigInteger, nullable=False),
    Column("requests", BigInteger, nullable=False),
    Column("answers_2xx", BigInteger, nullable=False),
    Column("answers_3xx", BigInteger, nullable=False),
    Column("answers_4xx", BigInteger, nullable=False),
    Column("answers_5xx", BigInteger, nullable=False),
    # Rows of before these were counted have none.
    *(Column(name, BigInteger, nullable=False, server_default=text("0")) for name in RESPONSE_TIMES),
    Index("ix_metrics_start", "start"),
)

class_times = Table(
    "class_times",
    metadata,
    # A row only for a class that had responses.
    Column("builder_id", Text, primary_key=True),
    Column("start", UtcDateTime, primary_key=True),
    Column("class", Text, primary_key=True),
    *(Column(name, BigInteger, nullable=False) for name in RESPONSE_TIMES),
    Index("ix_class_times_start", "start"),
)


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
        sandboxes.c.process,
    )
    .select_from(sandboxes)
    .join(builders, builders.c.id == sandboxes.c.builder_id)
    .join(tenants, tenants.c.id == builders.c.tenant_id)
    .where(sandboxes.c.end_cause.is_(None), sandboxes.c.started_at.is_not(None), sandboxes.c.trial.is_(False))
    .order_by(builders.c.id, sandboxes.c.process, sandboxes.c.number)
)
# Summed by the database: of a day's rows, a page of builders has thousands.
_number = (EpochSeconds(metrics.c.start) - bindparam("from", type_=BigInteger)) // bindparam("step", type_=BigInteger)
_LOADS = (
    select(
        metrics.c.builder_id,
        _number.label("number"),
        func.sum(metrics.c.seconds).label("seconds"),
        func.sum(metrics.c.cpu_seconds).label("cpu"),
        func.sum(metrics.c.memory_byte_seconds).label("memory"),
    )
    .where(
        metrics.c.builder_id.in_(bindparam("builders", expanding=True)),
        metrics.c.start >= bindparam("since", type_=metrics.c.start.type),
    )
    .group_by(metrics.c.builder_id, text("number"))
    .having(func.sum(metrics.c.seconds) > 0)
)


class Metrics(Queries):
    def watched(self) -> Sequence[SampleTarget]:
        """Return all tenants' sandboxes that were started and have not ended, without trials."""
        return [SampleTarget(**row) for row in self._connection.execute(_WATCHED).mappings()]

    def add(self, steps: Sequence[UsageBucket]) -> None:
        """Add these to the recorded buckets of the same builders and times."""
        if not steps:
            return
        # Sorted by builder, so that concurrent transactions cannot deadlock.
        ordered, dialect = sorted(steps, key=lambda step: step.builder_id), self._connection.dialect.name
        self._connection.execute(_UPSERTS[dialect], [_row(step) for step in ordered])
        if times := [row for step in ordered for row in _time_rows(step)]:
            self._connection.execute(_TIME_UPSERTS[dialect], times)

    def of_builder(self, builder: BuilderId, since: datetime) -> Sequence[UsageBucket]:
        """Return those that begin at or after this time, oldest first."""
        found, timed = (
            select(table).where(table.c.builder_id == builder, table.c.start >= since).order_by(table.c.start)
            for table in (metrics, class_times)
        )
        rows = self._connection.execute(found).mappings().all()
        times: dict[datetime, dict[str, RowMapping]] = {}
        for row in self._connection.execute(timed).mappings():
            times.setdefault(row["start"], {})[row["class"]] = row
        return [_step(row, times.get(row["start"])) for row in rows]

    def loads(
        self, builders: Sequence[BuilderId], since: datetime, step: timedelta
    ) -> Mapping[BuilderId, Mapping[int, Load]]:
        """Return the averages of these builders in each step from ``since`` on that has samples, by its number."""
        begin, length = int(since.timestamp()), int(step.total_seconds())
        values = {"builders": list(builders), "since": since, "from": begin, "step": length}
        found: dict[BuilderId, dict[int, Load]] = {}
        for builder, number, seconds, cpu, memory in self._connection.execute(_LOADS, values):
            found.setdefault(builder, {})[int(number)] = Load(cpu / seconds, memory / seconds)
        return found

    def expire(self, before: datetime) -> int:
        """Delete those that began before this time; return the number."""
        self._change(delete(class_times).where(class_times.c.start < before))
        return self._change(delete(metrics).where(metrics.c.start < before))


def _upsert(insert: Any) -> Any:
    statement = insert(metrics)
    new, old = statement.excluded, metrics.c
    added = {name: old[name] + new[name] for name in old.keys() if name not in (*_KEY, *MAXIMA)}  # noqa: SIM118
    most = {name: case((old[name] > new[name], old[name]), else_=new[name]) for name in MAXIMA}
    return statement.on_conflict_do_update(index_elements=_KEY, set_={**added, **most})


def _time_upsert(insert: Any) -> Any:
    statement = insert(class_times)
    added = {name: class_times.c[name] + statement.excluded[name] for name in RESPONSE_TIMES}
    return statement.on_conflict_do_update(index_elements=(*_KEY, "class"), set_=added)


_UPSERTS = {"sqlite": _upsert(sqlite.insert), "postgresql": _upsert(postgresql.insert)}
_TIME_UPSERTS = {"sqlite": _time_upsert(sqlite.insert), "postgresql": _time_upsert(postgresql.insert)}


def _row(step: UsageBucket) -> dict[str, Any]:
    return {"builder_id": step.builder_id, "start": step.start, **omit(row_of(step.usage), "class_times")}


def _time_rows(step: UsageBucket) -> Iterator[dict[str, Any]]:
    """Yield a row for each class of statuses with responses in this step."""
    for cls in TIMED_CLASSES:
        counts = response_counts(step.usage, cls)
        if any(counts):
            key = {"builder_id": step.builder_id, "start": step.start, "class": cls}
            yield {**key, **dict(zip(RESPONSE_TIMES, counts, strict=True))}


def _step(row: RowMapping, times: Mapping[str, RowMapping] | None) -> UsageBucket:
    values = dict(row)
    builder_id, start = (values.pop(name) for name in _KEY)
    counts = (
        [times[cls][name] if cls in times else 0 for cls in TIMED_CLASSES for name in RESPONSE_TIMES] if times else ()
    )
    return UsageBucket(builder_id, start, Usage(**values, class_times=tuple(counts)))
