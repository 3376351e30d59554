"""Leases in SQL."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import Connection, bindparam, delete, insert, select, update

from builderd.domain.builders import Lease, LeaseId
from builderd.domain.ids import BuilderId
from builderd.store.tables import leases
from builderd.store.types import omit, row_of

_by_id = leases.c.id == bindparam("lease")
_of_builder = leases.c.builder_id == bindparam("builder")

_INSERT = insert(leases)
_UPDATE = update(leases).where(_by_id)
_DELETE = delete(leases).where(_by_id)
_OF_BUILDER = select(leases).where(_of_builder).order_by(leases.c.created_at, leases.c.id)
_LASTING = _OF_BUILDER.where(leases.c.expires_at > bindparam("now"))
_DELETE_OF = delete(leases).where(_of_builder)
_EXPIRE = _DELETE_OF.where(leases.c.expires_at <= bindparam("now"))


class Leases:
    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def add(self, lease: Lease) -> None:
        self._connection.execute(_INSERT, row_of(lease))

    def save(self, lease: Lease) -> None:
        self._connection.execute(_UPDATE, {"lease": lease.id, **omit(row_of(lease), "id")})

    def of_builder(self, builder: BuilderId) -> Sequence[Lease]:
        """Return all leases, oldest first, expired ones included until they are deleted."""
        return [Lease(**row) for row in self._connection.execute(_OF_BUILDER, {"builder": builder}).mappings()]

    def active(self, builder: BuilderId, now: datetime) -> Sequence[Lease]:
        """Return the leases that have not expired, oldest first."""
        rows = self._connection.execute(_LASTING, {"builder": builder, "now": now}).mappings()
        return [Lease(**row) for row in rows]

    def expire(self, builder: BuilderId, now: datetime) -> None:
        """Delete the builder's expired leases."""
        self._connection.execute(_EXPIRE, {"builder": builder, "now": now})

    def delete(self, lease: LeaseId) -> None:
        """Delete it. Idempotent."""
        self._connection.execute(_DELETE, {"lease": lease})

    def delete_of(self, builder: BuilderId) -> None:
        """Delete all leases of the builder."""
        self._connection.execute(_DELETE_OF, {"builder": builder})
