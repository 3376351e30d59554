"""The number of live builders in each tenant's row, as a transaction changes it."""

from __future__ import annotations

from collections import Counter

from sqlalchemy import Connection, Integer, bindparam, update

from builderd.adapters.stores.sql.tables import tenants
from builderd.domain.builders import Builder, Desired
from builderd.domain.ids import BuilderId, TenantId

_ADD = (
    update(tenants)
    .where(tenants.c.id == bindparam("tenant"))
    .values(live_builders=tenants.c.live_builders + bindparam("more", type_=Integer))
)


class LiveCounts:
    """Differences that one transaction makes, written by its last statements, since they lock tenants' rows.

    A transaction that held such a row while it waited for ``lock_demand`` would deadlock with a create that has that.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        #: Locked builders that count.
        self._live: set[BuilderId] = set()
        self._more: Counter[TenantId] = Counter()

    def note(self, builder: Builder) -> None:
        """Remember if the locked row counts as it is stored."""
        if builder.desired is not Desired.DELETED:
            self._live.add(builder.id)

    def change(self, builder: Builder) -> None:
        """Count a row that was written, or no more."""
        is_live = builder.desired is not Desired.DELETED
        if is_live != (builder.id in self._live):
            self._more[builder.tenant_id] += 1 if is_live else -1
            self._live ^= {builder.id}

    def write(self) -> None:
        """Write the differences, in the order of the tenants, so that two transactions cannot deadlock."""
        for tenant, more in sorted(self._more.items()):
            if more:
                self._connection.execute(_ADD, {"tenant": tenant, "more": more})
