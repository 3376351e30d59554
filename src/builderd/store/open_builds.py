"""Builds that run, in SQL."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import Connection, bindparam, delete, insert, select, update

from builderd.domain.prices import OpenBuild
from builderd.store.tables import open_builds
from builderd.store.types import row_of

_by_id = open_builds.c.id == bindparam("build")

_INSERT = insert(open_builds)
_ALL = select(open_builds).order_by(open_builds.c.started_at, open_builds.c.id)
_SEEN = update(open_builds).where(_by_id).values(seen_at=bindparam("at", type_=open_builds.c.seen_at.type))
_DELETE = delete(open_builds).where(_by_id)


class OpenBuilds:
    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def add(self, build: OpenBuild) -> None:
        self._connection.execute(_INSERT, row_of(build))

    def seen(self, build: str, at: datetime) -> None:
        """Record that it still runs; do nothing once it is removed."""
        self._connection.execute(_SEEN, {"build": build, "at": at})

    def all(self) -> Sequence[OpenBuild]:
        return [OpenBuild(**row) for row in self._connection.execute(_ALL).mappings()]

    def remove(self, build: str) -> bool:
        """Remove it; return False if it was removed before."""
        return self._connection.execute(_DELETE, {"build": build}).rowcount == 1
