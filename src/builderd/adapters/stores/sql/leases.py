"""Leases in SQL."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, bindparam, delete, insert, select, update

from builderd.adapters.stores.sql.rows import row_of, without
from builderd.adapters.stores.sql.tables import leases
from builderd.domain.ids import BuilderId
from builderd.domain.leases import Lease, LeaseId

_by_id = leases.c.id == bindparam("lease")

_INSERT = insert(leases)
_UPDATE = update(leases).where(_by_id)
_DELETE = delete(leases).where(_by_id)
_OF_BUILDER = (
    select(leases).where(leases.c.builder_id == bindparam("builder")).order_by(leases.c.created_at, leases.c.id)
)


class Leases:
    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def add(self, lease: Lease) -> None:
        self._connection.execute(_INSERT, row_of(lease))

    def save(self, lease: Lease) -> None:
        self._connection.execute(_UPDATE, {"lease": lease.id, **without(row_of(lease), "id")})

    def of_builder(self, builder: BuilderId) -> Sequence[Lease]:
        return [Lease(**row) for row in self._connection.execute(_OF_BUILDER, {"builder": builder}).mappings()]

    def delete(self, lease: LeaseId) -> None:
        self._connection.execute(_DELETE, {"lease": lease})
