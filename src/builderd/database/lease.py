"""The lease on the database, leases on work, and the services of a cluster, in SQL.

The database's lease is one row, changed by compare-and-set on its term.

Each unit of work of the owner reads the row with the weakest lock (``FOR KEY SHARE``), which does not block a renewal.
An acquisition locks the row ``FOR UPDATE``: it waits for the previous owner's open transactions, and the previous
owner's later ones see the new term. SQLite needs no row lock: it has one writer.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import (
    BigInteger,
    BindParameter,
    Boolean,
    CheckConstraint,
    Column,
    ForeignKey,
    Integer,
    Select,
    Table,
    Text,
    bindparam,
    delete,
    insert,
    literal,
    select,
    update,
)

from builderd.backups.store import backups, restores
from builderd.builders.model import Lease, LeaseId, Status
from builderd.builders.table import builders
from builderd.core.ids import BuilderId
from builderd.core.members import ClusterService, DatabaseLease, Instance, SeenService
from builderd.database.columns import metadata
from builderd.database.migrations import is_made
from builderd.database.repository import Queries, Repository
from builderd.database.types import ForeignText, UtcDateTime, database_now, omit, row_of
from builderd.review.store import qa_reports

# A standby of another version reads and writes it, so a later revision may only add nullable columns.
services = Table(
    "services",
    metadata,
    Column("id", Text, primary_key=True),
    Column("host_name", ForeignText, nullable=False),
    Column("data_dir", ForeignText, nullable=False),
    Column("version", Text, nullable=False),
    Column("disks", ForeignText, nullable=False),
    Column("vault_key", Text, nullable=False),
    Column("vault_key_file", ForeignText, nullable=False),
    Column("ssh_key", Text, nullable=False),
    Column("ssh_key_file", ForeignText, nullable=False),
    # By the database's clock.
    Column("seen_at", UtcDateTime, nullable=False),
    Column("known_in", BigInteger),
)

# One row. It is read before a migration, so a later revision may only add nullable columns.
database_lease = Table(
    "database_lease",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("term", BigInteger, nullable=False),
    Column("host_id", Text, nullable=False),
    Column("host_name", ForeignText, nullable=False),
    Column("data_dir", ForeignText, nullable=False),
    Column("identity", Text, nullable=False),
    Column("boot_id", Text, nullable=False),
    # By the database's clock.
    Column("renewed_at", UtcDateTime, nullable=False),
    Column("released", Boolean, nullable=False),
    CheckConstraint("id = 1", name="only"),
)

leases = Table(
    "leases",
    metadata,
    Column("id", Text, primary_key=True),
    Column("builder_id", Text, ForeignKey("builders.id"), nullable=False, index=True),
    Column("reason", ForeignText, nullable=False),
    Column("created_by", ForeignText, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("expires_at", UtcDateTime, nullable=False),
)


_row = database_lease.c
_instance = ("host_id", "host_name", "data_dir", "identity", "boot_id")


_GET = select(database_lease, database_now().label("now"))
_of_term = _row.term == bindparam("held")
_RENEW = update(database_lease).where(_of_term).values(renewed_at=database_now())
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


class DatabaseLeases(Queries):
    """The one lease on the database. Times are by the database's clock."""

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
        found = self._one(_GET.with_for_update())
        if (found is None) != (seen is None) or (found and seen and found.was_renewed(seen)):
            return None
        term = found.term + 1 if found else 1
        values = {**row_of(instance), "term": term, "released": False}
        if found is None:
            self._connection.execute(insert(database_lease).values(renewed_at=database_now()), {**values, "id": 1})
        else:
            self._connection.execute(update(database_lease).values(renewed_at=database_now()), values)
        return self._one(_GET)

    def renew(self, term: int) -> bool:
        """Renew the lease; return False if it has another term."""
        return self._change(_RENEW, held=term) == 1

    def release(self, term: int) -> None:
        """Record that the owner stopped cleanly."""
        self._change(update(database_lease).where(_of_term).values(released=True), held=term)

    def adopt(self, instance: Instance) -> None:
        """Assign all undeleted builders to the instance, and the claims and unfinished work of other services."""
        owner = {"new_owner": instance.identity}
        self._change(_MOVE_BUILDERS, new_member=instance.member)
        self._connection.execute(_DROP_CLAIMS, owner)
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


_by_id = leases.c.id == bindparam("lease")
_of_builder = leases.c.builder_id == bindparam("builder")

_OF_BUILDER = select(leases).where(_of_builder).order_by(leases.c.created_at, leases.c.id)
_LASTING = _OF_BUILDER.where(leases.c.expires_at > bindparam("now"))
_DELETE_OF = delete(leases).where(_of_builder)
_EXPIRE = _DELETE_OF.where(leases.c.expires_at <= bindparam("now"))


class Leases(Repository[Lease]):
    _table, _record = leases, Lease

    def of_builder(self, builder: BuilderId) -> Sequence[Lease]:
        """Return all leases, oldest first, expired ones included until they are deleted."""
        return self._all(_OF_BUILDER, builder=builder)

    def active(self, builder: BuilderId, now: datetime) -> Sequence[Lease]:
        """Return the leases that have not expired, oldest first."""
        return self._all(_LASTING, builder=builder, now=now)

    def expire(self, builder: BuilderId, now: datetime) -> None:
        """Delete the builder's expired leases."""
        self._change(_EXPIRE, builder=builder, now=now)

    def delete(self, lease: LeaseId) -> None:
        """Delete it. Idempotent."""
        self._change(delete(leases).where(_by_id), lease=lease)

    def delete_of(self, builder: BuilderId) -> None:
        """Delete all leases of the builder."""
        self._change(_DELETE_OF, builder=builder)


_service = services.c
_FIELDS = [column for column in services.c if column.name not in ("seen_at", "known_in")]

_LIST = select(services, database_now().label("now")).order_by(_service.id)
_UPDATE = update(services).where(_service.id == bindparam("service")).values(seen_at=database_now())
_known = _service.id.in_(bindparam("ids", expanding=True))
_SET_KNOWN = update(services).where(_known).values(known_in=bindparam("term"))
_UNSET_KNOWN = update(services).where(~_known, _service.known_in.is_not(None)).values(known_in=None)


class Services(Queries):
    """Services of a cluster: the owner of the database, and those that stand by. Times are by the database's clock."""

    def announce(self, service: ClusterService) -> None:
        """Store the service as seen now; whether the owner knows of it stays as it was."""
        row = row_of(service)
        if not self._change(_UPDATE, **omit(row, "id"), service=service.id):
            self._connection.execute(insert(services).values(seen_at=database_now()), row)

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
        self._change(_UNSET_KNOWN, ids=list(ids))
        self._connection.execute(_SET_KNOWN, {"ids": list(ids), "term": term})

    def remove(self, service: str) -> None:
        """Remove a service. Idempotent."""
        self._change(delete(services).where(_service.id == bindparam("service")), service=service)
