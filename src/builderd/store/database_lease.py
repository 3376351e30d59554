"""The lease on the database, in SQL: one row, changed by compare-and-set on its term.

Each unit of work of the owner reads the row with the weakest lock (``FOR KEY SHARE``), which does not block a renewal.
An acquisition locks the row ``FOR UPDATE``: it waits for the previous owner's open transactions, and the previous
owner's later ones see the new term. SQLite needs no row lock: it has one writer.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    BindParameter,
    Connection,
    Select,
    bindparam,
    insert,
    literal,
    select,
    update,
)

from builderd.domain.builders import Status
from builderd.domain.database_lease import DatabaseLease, Instance
from builderd.store.live_totals import count_all_anew
from builderd.store.migrations import is_made
from builderd.store.tables import backups, builders, database_lease, qa_reports, restores
from builderd.store.types import database_now, row_of

_row = database_lease.c
_instance = ("host_id", "host_name", "data_dir", "identity", "boot_id")


_GET = select(database_lease, database_now().label("now"))
_LOCK = _GET.with_for_update()
_INSERT = insert(database_lease).values(renewed_at=database_now())
_UPDATE = update(database_lease).values(renewed_at=database_now())
_of_term = _row.term == bindparam("held")
_RENEW = update(database_lease).where(_of_term).values(renewed_at=database_now())
_RELEASE = update(database_lease).where(_of_term).values(released=True)
_HOLDS = select(literal(1)).where(_of_term).with_for_update(read=True, key_share=True)

_ANY_BUILDER = select(builders.c.id).limit(1)
_member: BindParameter[str] = bindparam("new_member", type_=builders.c.member.type)
_identity: BindParameter[str] = bindparam("new_owner", type_=builders.c.claimed_by.type)
_builder = builders.c
_MOVE_BUILDERS = (
    update(builders).where(_builder.member != _member, _builder.status != Status.DELETED).values(member=_member)
)
_DROP_CLAIMS = update(builders).where(_builder.claimed_by != _identity).values(claimed_by=None, claimed_until=None)
# A job without an owner has not started.
_TAKE_OVER_WORK = [
    update(table).where(table.c.owner.not_in([_identity, ""])).values(owner=_identity)
    for table in (backups, restores, qa_reports)
]


class DatabaseLeases:
    """The one lease on the database. Times are by the database's clock."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def is_new(self) -> bool:
        """Return True if no service ever owned the database and it has no builder. Works before a migration too."""
        return not is_made(self._connection) or not (self._one(_GET) or self._connection.scalar(_ANY_BUILDER))

    def get(self) -> DatabaseLease | None:
        """Return the lease, or None if the database was never owned. Works before a migration too.

        Raises ``InvalidState`` for a schema from before 1.0.
        """
        return self._one(_GET) if is_made(self._connection) else None

    def take(self, instance: Instance, seen: DatabaseLease | None) -> DatabaseLease | None:
        """Make the instance the owner, with the next term; return None if the lease differs from ``seen``.

        Waits for the open units of work of the previous owner.
        """
        found = self._one(_LOCK)
        if (found is None) != (seen is None) or (found and seen and found.was_renewed(seen)):
            return None
        term = found.term + 1 if found else 1
        values = {**row_of(instance), "term": term, "released": False}
        if found is None:
            self._connection.execute(_INSERT, {**values, "id": 1})
        else:
            self._connection.execute(_UPDATE, values)
        return self._one(_GET)

    def renew(self, term: int) -> bool:
        """Renew the lease; return False if it has another term."""
        return self._connection.execute(_RENEW, {"held": term}).rowcount == 1

    def release(self, term: int) -> None:
        """Record that the owner stopped cleanly."""
        self._connection.execute(_RELEASE, {"held": term})

    def adopt(self, instance: Instance) -> None:
        """Assign all undeleted builders to the instance, and the claims and unfinished work of other services.

        Tenants' numbers of live builders are counted anew.
        """
        owner = {"new_owner": instance.identity}
        self._connection.execute(_MOVE_BUILDERS, {"new_member": instance.member})
        self._connection.execute(_DROP_CLAIMS, owner)
        count_all_anew(self._connection)
        for statement in _TAKE_OVER_WORK:
            self._connection.execute(statement, owner)

    def holds(self, term: int) -> bool:
        """Return True when the lease has this term. It then keeps it until this transaction ends."""
        return self._connection.execute(_HOLDS, {"held": term}).first() is not None

    def _one(self, statement: Select[Any]) -> DatabaseLease | None:
        row = self._connection.execute(statement).mappings().first()
        if row is None:
            return None
        age = (row["now"] - row["renewed_at"]).total_seconds()
        instance = Instance(**{name: row[name] for name in _instance})
        return DatabaseLease(instance, row["term"], row["renewed_at"], age, row["released"])
