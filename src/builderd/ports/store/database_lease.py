"""The lease on the database in the store."""

from __future__ import annotations

from typing import Protocol

from builderd.domain.database_lease import DatabaseLease, Instance


class DatabaseLeases(Protocol):
    """The one lease on the database. Times are by the database's clock."""

    def has_table(self) -> bool:
        """Return True if the schema has the table: revision 0017 and later."""

    def is_new(self) -> bool:
        """Return True if no service ever owned the database and it has no builder. Works before a migration too."""

    def get(self) -> DatabaseLease | None:
        """Return the lease, or None if the database was never owned. Works before a migration too."""

    def take(self, instance: Instance, seen: DatabaseLease | None) -> DatabaseLease | None:
        """Make the instance the owner, with the next term; return None if the lease differs from ``seen``.

        Waits for the open units of work of the previous owner.
        """

    def renew(self, term: int) -> bool:
        """Renew the lease; return False if it has another term."""

    def release(self, term: int) -> None:
        """Record that the owner stopped cleanly."""

    def adopt(self, instance: Instance) -> None:
        """Assign all undeleted builders to the instance, and the claims and unfinished work of other services.

        Tenants' numbers of live builders are counted anew.
        """
