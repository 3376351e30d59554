"""Sandboxes, logs of builds, and builds in progress in SQL."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import (
    Boolean,
    CheckConstraint,
    Column,
    Index,
    Integer,
    RowMapping,
    Table,
    Text,
    UniqueConstraint,
    delete,
    exists,
    false,
    func,
    insert,
    not_,
    select,
    text,
    update,
)

from builderd.builders.table import builders
from builderd.core.ids import BuilderId, SandboxId
from builderd.database.columns import COUNTER, NEVER_REUSE_IDS, builder_columns, metadata, unique_where, version_key
from builderd.database.repository import Queries, Repository, damage_named, read_each
from builderd.database.types import ForeignText, UtcDateTime, enum_column, row_of
from builderd.money.model import OpenBuild
from builderd.sandboxes.model import EndCause, LogLine, LogStream, Sandbox, SandboxEnd

sandboxes = Table(
    "sandboxes",
    metadata,
    Column("id", Text, primary_key=True),
    Column("builder_id", Text, nullable=False),
    Column("version", Integer, nullable=False),
    Column("run", Integer, key="generation", nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("ip", Text),
    Column("started_at", UtcDateTime),
    Column("listening_at", UtcDateTime),
    Column("end_cause", enum_column(EndCause)),
    Column("end_exit_code", Integer),
    Column("end_at", UtcDateTime),
    Column("disk", Text, nullable=False, server_default=text("''")),
    Column("trial", Boolean, nullable=False, server_default=false()),
    Column("release", Boolean, nullable=False, server_default=false()),
    Column("process", Text, nullable=False, server_default=text("''")),
    Column("number", Integer, nullable=False, server_default=text("1")),
    Column("replaced", Boolean, nullable=False, server_default=false()),
    version_key("sandboxes"),
    UniqueConstraint("builder_id", "generation", "attempt"),
    CheckConstraint("attempt >= 1", name="attempt"),
    CheckConstraint("end_cause IS NOT NULL OR (end_exit_code IS NULL AND end_at IS NULL)", name="end"),
    # At most one open sandbox that serves, one open trial, and one of each further process and number.
    unique_where("uq_sandboxes_open", "builder_id", "end_cause IS NULL", "trial", "process", "number"),
)

build_logs = Table(
    "build_logs",
    metadata,
    Column("id", COUNTER, primary_key=True),
    Column("builder_id", Text, nullable=False),
    Column("version", Integer, nullable=False),
    Column("time", UtcDateTime, nullable=False),
    Column("stream", enum_column(LogStream), nullable=False),
    Column("text", ForeignText, nullable=False),
    version_key("build_logs"),
    Index("ix_build_logs_builder_id_id", "builder_id", "id"),
    **NEVER_REUSE_IDS,
)

# Builds that run, which the next service charges if this one is killed. Few at a time.
open_builds = Table(
    "open_builds",
    metadata,
    Column("id", Text, primary_key=True),
    *builder_columns(),
    Column("started_at", UtcDateTime, nullable=False),
    Column("seen_at", UtcDateTime, nullable=False),
)


_is_open = sandboxes.c.end_cause.is_(None) & sandboxes.c.trial.is_(False)
_is_own = _is_open & (sandboxes.c.process == "")
# Generations and attempts count up, so they order sandboxes even when they began in the same instant.
_OLDEST_FIRST = select(sandboxes).order_by(sandboxes.c.generation, sandboxes.c.attempt)

_later = sandboxes.alias()
_is_later = (
    (_later.c.builder_id == sandboxes.c.builder_id)
    & (_later.c.generation == sandboxes.c.generation)
    & (_later.c.process == sandboxes.c.process)
    & (_later.c.number == sandboxes.c.number)
    & (_later.c.attempt > sandboxes.c.attempt)
)


class Sandboxes(Repository[Sandbox]):
    _table, _record = sandboxes, Sandbox

    def get(self, sandbox: SandboxId) -> Sandbox | None:
        is_it = sandboxes.c.id == sandbox
        with damage_named(lambda: str(self._connection.scalar(select(sandboxes.c.builder_id).where(is_it)))):
            return self._first(select(sandboxes).where(is_it))

    def open_of(self, builder: BuilderId) -> Sandbox | None:
        """Return the app's own that has not ended, at most one, without trials and further processes."""
        with damage_named(builder):
            return self._first(select(sandboxes).where(sandboxes.c.builder_id == builder, _is_own))

    def all_open(self, builder: BuilderId) -> Sequence[Sandbox]:
        """Return the app's own and those of further processes that have not ended, without trials."""
        with damage_named(builder):
            return self._all(_OLDEST_FIRST.where(sandboxes.c.builder_id == builder, _is_open))

    def open_of_all(self, builders: Sequence[BuilderId]) -> Sequence[Sandbox]:
        """Return those that ``open_of`` returns of these builders."""
        found = select(sandboxes).where(sandboxes.c.builder_id.in_(builders), _is_own)
        return read_each(self._connection, found, {}, lambda row: self._value(row._mapping), "builder_id")

    def of_present_runs(self, ids: Sequence[BuilderId]) -> Mapping[str, Sequence[Sandbox]]:
        """Return those of the present generation of each of these builders, oldest first."""
        is_present = (builders.c.id == sandboxes.c.builder_id) & (builders.c.generation == sandboxes.c.generation)
        found = _OLDEST_FIRST.join(builders, is_present).where(sandboxes.c.builder_id.in_(ids))
        runs: dict[str, list[Sandbox]] = {one: [] for one in ids}
        if ids:
            for one in read_each(self._connection, found, {}, lambda row: self._value(row._mapping), "builder_id"):
                runs[one.builder_id].append(one)
        return runs

    def list(self, builder: BuilderId) -> Sequence[Sandbox]:
        """Return all sandboxes, oldest first."""
        with damage_named(builder):
            return self._all(_OLDEST_FIRST.where(sandboxes.c.builder_id == builder))

    def of_generation(self, builder: BuilderId, generation: int) -> Sequence[Sandbox]:
        """Return those of one generation, oldest first."""
        with damage_named(builder):
            is_of_it = sandboxes.c.builder_id == builder, sandboxes.c.generation == generation
            return self._all(_OLDEST_FIRST.where(*is_of_it))

    def open_or_of_generation(self, builder: BuilderId, generation: int) -> Sequence[Sandbox]:
        """Return those of one generation and those of others that have not ended, trials included."""
        with damage_named(builder):
            either = (sandboxes.c.generation == generation) | sandboxes.c.end_cause.is_(None)
            return self._all(_OLDEST_FIRST.where(sandboxes.c.builder_id == builder, either))

    def mark_replaced(self, builder: BuilderId, generation: int, process: str) -> None:
        """Mark those of a process (``worker``, "" for the app's own) or one of them (``worker.2``) as ``replaced``."""
        name, _, number = process.partition(".")
        own = sandboxes.c.builder_id == builder, sandboxes.c.generation == generation, sandboxes.c.process == name
        is_it = sandboxes.c.number == int(number) if number.isdecimal() else not_(sandboxes.c.trial)
        self._change(update(sandboxes).where(*own, is_it, not_(sandboxes.c.release)), replaced=True)

    def expire(self, before: datetime, limit: int) -> int:
        """Delete up to ``limit`` that ended before this time, none of the present generation; return the number."""
        over = (
            select(sandboxes.c.id)
            .join(builders, builders.c.id == sandboxes.c.builder_id)
            .where(sandboxes.c.end_at < before, sandboxes.c.generation != builders.c.generation)
            .limit(limit)
        )
        return self._change(delete(sandboxes).where(sandboxes.c.id.in_(over)))

    def delete_oldest(self, keep: int, limit: int) -> int:
        """Delete up to ``limit`` ended ones of each process's generation that has over ``keep``; return the number.

        The latest ``keep`` of it stay, and the last one that listened."""
        early = (
            select(sandboxes.c.id)
            .where(sandboxes.c.end_cause.is_not(None))
            .where(exists().where(_is_later, _later.c.attempt >= sandboxes.c.attempt + keep))
            .where(sandboxes.c.listening_at.is_(None) | exists().where(_is_later, _later.c.listening_at.is_not(None)))
            .limit(limit)
        )
        return self._change(delete(sandboxes).where(sandboxes.c.id.in_(early)))

    def _row(self, value: Sandbox) -> dict[str, Any]:
        row, end = row_of(value), value.end
        del row["end"]
        # Only ``mark_replaced`` writes it: a step that began before must not take it back.
        del row["replaced"]
        return {
            **row,
            "end_cause": end.cause if end else None,
            "end_exit_code": end.exit_code if end else None,
            "end_at": end.at if end else None,
        }

    def _value(self, row: RowMapping) -> Sandbox:
        values = dict(row)
        cause, exit_code, at = (values.pop(name) for name in ("end_cause", "end_exit_code", "end_at"))
        generation = values.pop("run")  # a selected column comes by its name, not by its key
        return Sandbox(**values, generation=generation, end=SandboxEnd(cause, exit_code, at) if cause else None)


class BuildLogs(Queries):
    def add(self, builder: BuilderId, version: int, lines: Sequence[LogLine]) -> None:
        if lines:
            rows = [{"builder_id": builder, "version": version, **row_of(line)} for line in lines]
            self._connection.execute(insert(build_logs), rows)

    def before_last(self, builder: BuilderId, count: int | None, since: datetime | None = None) -> tuple[int, int]:
        """Return the id before the last ``count`` lines (None: all) since ``since``, and the number of them."""
        own = select(build_logs.c.id).where(build_logs.c.builder_id == builder).order_by(build_logs.c.id.desc())
        last = own if since is None else own.where(build_logs.c.time >= since)
        ids = last.limit(count).subquery()
        first, found = self._connection.execute(select(func.min(ids.c.id), func.count()).select_from(ids)).one()
        if found == 0:
            return self._connection.scalar(own.limit(1)) or 0, 0
        return first - 1, found

    def following(self, builder: BuilderId, after: int, limit: int) -> Sequence[tuple[int, int, LogLine]]:
        """Return (id, version, line), oldest first, up to ``limit`` with an id greater than ``after``."""
        lines = select(build_logs).where(build_logs.c.builder_id == builder, build_logs.c.id > after)
        rows = self._connection.execute(lines.order_by(build_logs.c.id).limit(limit))
        return [(row.id, row.version, LogLine(row.time, row.stream, row.text)) for row in rows]

    def expire(self, before: datetime, limit: int) -> int:
        """Delete up to ``limit`` of the oldest lines from before this time; return the number."""
        oldest = select(build_logs.c.id, build_logs.c.time).order_by(build_logs.c.id).limit(limit).subquery()
        over = select(oldest.c.id).where(oldest.c.time < before)
        return self._change(delete(build_logs).where(build_logs.c.id.in_(over)))

    def delete(self, builder: BuilderId) -> None:
        self._change(delete(build_logs).where(build_logs.c.builder_id == builder))


class OpenBuilds(Repository[OpenBuild]):
    _table, _record = open_builds, OpenBuild

    def seen(self, build: str, at: datetime) -> None:
        """Record that it still runs; do nothing once it is removed."""
        self._change(update(open_builds).where(open_builds.c.id == build), seen_at=at)

    def all(self) -> Sequence[OpenBuild]:
        return self._all(select(open_builds).order_by(open_builds.c.started_at, open_builds.c.id))

    def remove(self, build: str) -> bool:
        """Remove it; return False if it was removed before."""
        return self._change(delete(open_builds).where(open_builds.c.id == build)) == 1
