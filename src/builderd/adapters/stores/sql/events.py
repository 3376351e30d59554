"""Events in SQL.

A follower asks for ids greater than the last it saw, so an event must never appear behind a greater one that was seen
already. On SQLite, where one transaction writes at a time, ids appear in their order. On PostgreSQL an id is drawn
before its transaction commits; therefore each transaction that adds events first takes a lock of the tenant, held
until it ends, and the ids of a tenant's events become visible in their order, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from sqlalchemy import Connection, bindparam, func, insert, literal, select

from builderd.adapters.stores.sql.rows import row_of
from builderd.adapters.stores.sql.tables import events
from builderd.domain.events import Event
from builderd.domain.ids import BuilderId

#: The first key of the advisory locks; the second is a hash of the tenant's id. Two tenants of one hash just wait.
LOCK_CLASS = 0x62640001

_LOCK = select(func.pg_advisory_xact_lock(literal(LOCK_CLASS), func.hashtext(bindparam("tenant"))))
_INSERT = insert(events)
_OF_BUILDER = (
    select(events)
    .where(events.c.builder_id == bindparam("builder"), events.c.id > bindparam("after"))
    .order_by(events.c.id)
    .limit(bindparam("limit"))
)


class Events:
    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def add(self, event: Event) -> Event:
        if self._connection.dialect.name == "postgresql":
            self._connection.execute(_LOCK, {"tenant": event.tenant_id})
        row = row_of(event)
        del row["id"]
        row["details"] = dict(event.details)
        (event_id,) = self._connection.execute(_INSERT, row).inserted_primary_key or (0,)
        return replace(event, id=event_id)

    def of_builder(self, builder: BuilderId, *, after: int = 0, limit: int = 1000) -> Sequence[Event]:
        values = {"builder": builder, "after": after, "limit": limit}
        return [Event(**row) for row in self._connection.execute(_OF_BUILDER, values).mappings()]
