"""Services of a cluster in the store: the owner of the database, and those that stand by."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from builderd.domain.cluster_services import ClusterService, SeenService


class Services(Protocol):
    """Times are by the database's clock."""

    def has_table(self) -> bool:
        """Return True if the schema has the table: revision 0041 and later."""

    def announce(self, service: ClusterService) -> None:
        """Store the service as seen now; whether the owner knows of it stays as it was."""

    def list(self) -> Sequence[SeenService]:
        """Return all services, by id."""

    def set_known(self, ids: Sequence[str], term: int) -> None:
        """Record that the owner of this term knows of these services, and of no others."""

    def remove(self, service: str) -> None:
        """Remove a service. Idempotent."""
