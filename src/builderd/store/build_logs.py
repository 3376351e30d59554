"""Build logs, and builds that run, in SQL."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import bindparam, delete, func, insert, select, update

from builderd.domain.ids import BuilderId
from builderd.domain.prices import OpenBuild
from builderd.domain.sandboxes import LogLine
from builderd.store.repository import Queries, Repository
from builderd.store.tables import build_logs, open_builds
from builderd.store.types import row_of

_of_builder = build_logs.c.builder_id == bindparam("builder")

_FOLLOWING = (
    select(build_logs)
    .where(_of_builder, build_logs.c.id > bindparam("after"))
    .order_by(build_logs.c.id)
    .limit(bindparam("limit"))
)
_NEWEST_FIRST = select(build_logs).where(_of_builder).order_by(build_logs.c.id.desc())
_LAST_ID = select(func.max(build_logs.c.id)).where(_of_builder)
_OLDEST = select(build_logs.c.id, build_logs.c.time).order_by(build_logs.c.id).limit(bindparam("limit")).subquery()
_EXPIRE = delete(build_logs).where(
    build_logs.c.id.in_(select(_OLDEST.c.id).where(_OLDEST.c.time < bindparam("before", type_=build_logs.c.time.type)))
)


class BuildLogs(Queries):
    def add(self, builder: BuilderId, version: int, lines: Sequence[LogLine]) -> None:
        if lines:
            rows = [{"builder_id": builder, "version": version, **row_of(line)} for line in lines]
            self._connection.execute(insert(build_logs), rows)

    def before_last(self, builder: BuilderId, count: int | None, since: datetime | None = None) -> tuple[int, int]:
        """Return the id before the last ``count`` lines (None: all) since ``since``, and the number of them."""
        last = _NEWEST_FIRST if since is None else _NEWEST_FIRST.where(build_logs.c.time >= since)
        ids = last.with_only_columns(build_logs.c.id).limit(count).subquery()
        values = {"builder": builder}
        first, found = self._connection.execute(select(func.min(ids.c.id), func.count()), values).one()
        if found == 0:
            return self._scalar(_LAST_ID, **values) or 0, 0
        return first - 1, found

    def following(self, builder: BuilderId, after: int, limit: int) -> Sequence[tuple[int, int, LogLine]]:
        """Return (id, version, line), oldest first, up to ``limit`` with an id greater than ``after``."""
        rows = self._connection.execute(_FOLLOWING, {"builder": builder, "after": after, "limit": limit})
        return [(row.id, row.version, LogLine(row.time, row.stream, row.text)) for row in rows]

    def expire(self, before: datetime, limit: int) -> int:
        """Delete up to ``limit`` of the oldest lines from before this time; return the number."""
        return self._change(_EXPIRE, before=before, limit=limit)

    def delete(self, builder: BuilderId) -> None:
        self._change(delete(build_logs).where(_of_builder), builder=builder)


_by_id = open_builds.c.id == bindparam("build")

_ALL = select(open_builds).order_by(open_builds.c.started_at, open_builds.c.id)
_SEEN = update(open_builds).where(_by_id).values(seen_at=bindparam("at", type_=open_builds.c.seen_at.type))


class OpenBuilds(Repository[OpenBuild]):
    _table, _record = open_builds, OpenBuild

    def seen(self, build: str, at: datetime) -> None:
        """Record that it still runs; do nothing once it is removed."""
        self._change(_SEEN, build=build, at=at)

    def all(self) -> Sequence[OpenBuild]:
        return self._all(_ALL)

    def remove(self, build: str) -> bool:
        """Remove it; return False if it was removed before."""
        return self._change(delete(open_builds).where(_by_id), build=build) == 1
