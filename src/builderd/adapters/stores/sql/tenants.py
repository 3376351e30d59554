"""Tenants in SQL."""

from __future__ import annotations

from sqlalchemy import Connection, RowMapping, bindparam, insert, select

from builderd.adapters.stores.sql.rows import row_of
from builderd.adapters.stores.sql.tables import tenants
from builderd.domain.ids import TenantId
from builderd.domain.tenants import Tenant

_INSERT = insert(tenants)
_BY_ID = select(tenants).where(tenants.c.id == bindparam("id"))
_BY_NAME = select(tenants).where(tenants.c.name == bindparam("name"))


class Tenants:
    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def add(self, tenant: Tenant) -> None:
        self._connection.execute(_INSERT, row_of(tenant))

    def get(self, tenant: TenantId) -> Tenant | None:
        return _tenant(self._connection.execute(_BY_ID, {"id": tenant}).mappings().first())

    def by_name(self, name: str) -> Tenant | None:
        return _tenant(self._connection.execute(_BY_NAME, {"name": name}).mappings().first())


def _tenant(row: RowMapping | None) -> Tenant | None:
    return Tenant(**row) if row else None
