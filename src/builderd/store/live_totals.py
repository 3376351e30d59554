"""Number and reserved disk of a tenant's live builders, kept in the tenant's row as transactions change them.

Disks are summed as integers: a sum of binary fractions drifts from its parts when they are added and subtracted.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from typing import Any, NamedTuple

from sqlalchemy import BigInteger, Connection, Integer, Select, bindparam, cast, func, select, text, update

from builderd.domain.builders import Desired
from builderd.domain.ids import BuilderId, TenantId
from builderd.store.tables import LIVE, builders, tenants

log = logging.getLogger(__name__)

#: Parts of a GB in which disks are summed. Sizes with nine decimals and less are exact.
UNITS = 1_000_000_000
#: A builder's reserved disk in units, computed by the database alone: each rounding of one size has one result.
reserved_units = cast(func.round(builders.c.reserved_disk * float(UNITS)), BigInteger)

_ADD = (
    update(tenants)
    .where(tenants.c.id == bindparam("tenant"))
    .values(
        live_builders=tenants.c.live_builders + bindparam("more", type_=Integer),
        live_disk=tenants.c.live_disk + bindparam("more_disk", type_=BigInteger),
    )
)
_STORED = select(builders.c.tenant_id, builders.c.desired, reserved_units.label("units")).where(
    builders.c.id == bindparam("builder")
)
_SUMS = select(
    func.coalesce(func.sum(tenants.c.live_builders), 0),
    cast(func.coalesce(func.sum(tenants.c.live_disk), 0), BigInteger),
)
_OF_TENANT = _SUMS.where(tenants.c.id == bindparam("tenant"))
_KEPT = select(tenants.c.id, tenants.c.live_builders, tenants.c.live_disk).order_by(tenants.c.id)
_COUNTED = (
    select(builders.c.tenant_id, func.count(), cast(func.sum(reserved_units), BigInteger))
    .where(text(LIVE))
    .group_by(builders.c.tenant_id)
)


class Total(NamedTuple):
    """A number of builders, and their reserved disk in units."""

    builders: int = 0
    disk: int = 0

    def plus(self, other: Total) -> Total:
        return Total(self.builders + other.builders, self.disk + other.disk)

    def minus(self, other: Total) -> Total:
        return Total(self.builders - other.builders, self.disk - other.disk)


NOTHING = Total()


class LiveTotals:
    """Differences that one transaction makes, written by its last statements, since they lock tenants' rows.

    A transaction that held such a row while it waited for ``lock_demand`` would deadlock with a create that has that.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        #: What builders counted before this transaction changed them: its locked rows, and those that it added.
        self._before: dict[BuilderId, Total] = {}
        self._changed: set[BuilderId] = set()

    def note(self, builder: BuilderId, desired: Desired, units: int) -> None:
        """Remember a locked row as it is stored. Its own changes may have been made: the first look counts."""
        self._before.setdefault(builder, _counted(desired, units))

    def added(self, builder: BuilderId) -> None:
        """Count a row that was inserted."""
        self._before[builder] = NOTHING
        self._changed.add(builder)

    def lock(self, builder: BuilderId) -> None:
        """Lock a row whose reserved disk is written next, if this transaction has not."""
        if builder not in self._before:
            self._before[builder] = self._stored(builder, _STORED.with_for_update(key_share=True))[1]

    def change(self, builder: BuilderId) -> None:
        """Count a row anew: its state or its reserved disk was written since it was locked."""
        self._changed.add(builder)

    def sums(self, tenant: TenantId | None) -> Total:
        """Return the total of a tenant, or of all, with the changes of this transaction so far."""
        statement, values = (_SUMS, {}) if tenant is None else (_OF_TENANT, {"tenant": tenant})
        found = self._connection.execute(statement, values).one()
        total = Total(*map(int, found))
        for owner, more in self._differences().items():
            total = total.plus(more) if tenant in (None, owner) else total
        return total

    def write(self) -> None:
        """Write the differences, in the order of the tenants, so that two transactions cannot deadlock."""
        for tenant, more in sorted(self._differences().items()):
            if more != NOTHING:
                self._connection.execute(_ADD, {"tenant": tenant, "more": more.builders, "more_disk": more.disk})

    def _differences(self) -> dict[TenantId, Total]:
        found: defaultdict[TenantId, Total] = defaultdict(Total)
        for builder in self._changed:
            tenant, total = self._stored(builder, _STORED)
            found[tenant] = found[tenant].plus(total.minus(self._before[builder]))
        return found

    def _stored(self, builder: BuilderId, statement: Select[Any]) -> tuple[TenantId, Total]:
        row = self._connection.execute(statement, {"builder": builder}).one()
        return row.tenant_id, _counted(row.desired, row.units)


def _counted(desired: str, units: int) -> Total:
    return NOTHING if desired == Desired.DELETED else Total(1, units)


def count_all_anew(connection: Connection) -> None:
    """Compare the totals of all tenants with their builders, and correct those that differ.

    They are kept by differences, so a mistake would stay. No other transaction may change builders meanwhile.
    """
    counted = {tenant: Total(number, int(disk)) for tenant, number, disk in connection.execute(_COUNTED).all()}
    for tenant, *kept in connection.execute(_KEPT).all():
        difference = counted.get(tenant, NOTHING).minus(Total(*kept))
        if difference != NOTHING:
            log.warning(
                "totals of a tenant corrected tenant=%s builders=%d disk_units=%d",
                *(tenant, difference.builders, difference.disk),
            )
            connection.execute(_ADD, {"tenant": tenant, "more": difference.builders, "more_disk": difference.disk})
