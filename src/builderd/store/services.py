"""Services of a cluster in SQL."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, bindparam, delete, insert, select, update

from builderd.domain.database_lease import ClusterService, SeenService
from builderd.store.tables import services
from builderd.store.types import database_now, omit, row_of

_row = services.c
_FIELDS = [column for column in services.c if column.name not in ("seen_at", "known_in")]

_LIST = select(services, database_now().label("now")).order_by(_row.id)
_INSERT = insert(services).values(seen_at=database_now())
_UPDATE = update(services).where(_row.id == bindparam("service")).values(seen_at=database_now())
_known = _row.id.in_(bindparam("ids", expanding=True))
_SET_KNOWN = update(services).where(_known).values(known_in=bindparam("term"))
_UNSET_KNOWN = update(services).where(~_known, _row.known_in.is_not(None)).values(known_in=None)
_REMOVE = delete(services).where(_row.id == bindparam("service"))


class Services:
    """Services of a cluster: the owner of the database, and those that stand by. Times are by the database's clock."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def announce(self, service: ClusterService) -> None:
        """Store the service as seen now; whether the owner knows of it stays as it was."""
        row = row_of(service)
        if not self._connection.execute(_UPDATE, {**omit(row, "id"), "service": service.id}).rowcount:
            self._connection.execute(_INSERT, row)

    def list(self) -> Sequence[SeenService]:
        """Return all services, by id."""
        return [
            SeenService(
                ClusterService(**{column.name: row[column.name] for column in _FIELDS}),
                (row["now"] - row["seen_at"]).total_seconds(),
                row["known_in"],
            )
            for row in self._connection.execute(_LIST).mappings()
        ]

    def set_known(self, ids: Sequence[str], term: int) -> None:
        """Record that the owner of this term knows of these services, and of no others."""
        self._connection.execute(_UNSET_KNOWN, {"ids": list(ids)})
        self._connection.execute(_SET_KNOWN, {"ids": list(ids), "term": term})

    def remove(self, service: str) -> None:
        """Remove a service. Idempotent."""
        self._connection.execute(_REMOVE, {"service": service})
