"""The store: all of builderd's records, behind one unit of work.

A unit of work is one transaction. Services get it from their caller; only an interface or the reconciler opens one,
by ``Store.write`` or ``Store.read``, and so commits. The functions run in a worker thread and must wait for nothing but
the store. The repositories of a unit of work are in files of their own, one for each noun.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from builderd.ports.store.backups import BackupChecks, BackupKeys, Backups, Restores
from builderd.ports.store.build_logs import BuildLogs
from builderd.ports.store.builder_lists import BuilderLists
from builderd.ports.store.builders import Builders
from builderd.ports.store.credentials import Credentials
from builderd.ports.store.database_lease import DatabaseLeases
from builderd.ports.store.domains import AcmeAccounts, Domains, WildcardCertificates
from builderd.ports.store.events import Events
from builderd.ports.store.idempotency import Idempotency
from builderd.ports.store.leases import Leases
from builderd.ports.store.ledger import Ledger
from builderd.ports.store.metrics import Metrics
from builderd.ports.store.open_builds import OpenBuilds
from builderd.ports.store.preview_links import PreviewLinks
from builderd.ports.store.qa_reports import QaReports
from builderd.ports.store.reviews import Acceptances, Reviews
from builderd.ports.store.sandboxes import Sandboxes
from builderd.ports.store.services import Services
from builderd.ports.store.sessions import Sessions, SignInLinks
from builderd.ports.store.ssh_grants import SshGrants
from builderd.ports.store.stored_bundles import StoredBundles
from builderd.ports.store.stored_times import StoredTimes
from builderd.ports.store.stored_uploads import StoredUploads
from builderd.ports.store.tenants import Tenants
from builderd.ports.store.tokens import Tokens
from builderd.ports.store.uploads import Uploads
from builderd.ports.store.versions import Versions
from builderd.ports.store.webhooks import Deliveries, Webhooks
from builderd.ports.store.writes import Kind

__all__ = [
    "Acceptances",
    "AcmeAccounts",
    "BackupChecks",
    "BackupKeys",
    "Backups",
    "BuildLogs",
    "BuilderLists",
    "Builders",
    "Credentials",
    "DatabaseLeases",
    "Deliveries",
    "Domains",
    "Events",
    "Idempotency",
    "Kind",
    "Leases",
    "Ledger",
    "Metrics",
    "OpenBuilds",
    "PreviewLinks",
    "QaReports",
    "Restores",
    "Reviews",
    "Sandboxes",
    "Services",
    "Sessions",
    "SignInLinks",
    "SshGrants",
    "Store",
    "StoredBundles",
    "StoredTimes",
    "StoredUploads",
    "Tenants",
    "Tokens",
    "UnitOfWork",
    "Uploads",
    "Versions",
    "Webhooks",
    "WildcardCertificates",
]

T = TypeVar("T")


class UnitOfWork(Protocol):
    @property
    def database_lease(self) -> DatabaseLeases: ...
    @property
    def services(self) -> Services: ...
    @property
    def tenants(self) -> Tenants: ...
    @property
    def tokens(self) -> Tokens: ...
    @property
    def builders(self) -> Builders: ...
    @property
    def builder_lists(self) -> BuilderLists: ...
    @property
    def versions(self) -> Versions: ...
    @property
    def sandboxes(self) -> Sandboxes: ...
    @property
    def ledger(self) -> Ledger: ...
    @property
    def open_builds(self) -> OpenBuilds: ...
    @property
    def events(self) -> Events: ...
    @property
    def metrics(self) -> Metrics: ...
    @property
    def webhooks(self) -> Webhooks: ...
    @property
    def deliveries(self) -> Deliveries: ...
    @property
    def build_logs(self) -> BuildLogs: ...
    @property
    def credentials(self) -> Credentials: ...
    @property
    def domains(self) -> Domains: ...
    @property
    def acme_accounts(self) -> AcmeAccounts: ...
    @property
    def wildcard_certificates(self) -> WildcardCertificates: ...
    @property
    def backups(self) -> Backups: ...
    @property
    def restores(self) -> Restores: ...
    @property
    def backup_checks(self) -> BackupChecks: ...
    @property
    def backup_keys(self) -> BackupKeys: ...
    @property
    def leases(self) -> Leases: ...
    @property
    def stored_bundles(self) -> StoredBundles: ...
    @property
    def stored_uploads(self) -> StoredUploads: ...
    @property
    def stored_times(self) -> StoredTimes: ...
    @property
    def uploads(self) -> Uploads: ...
    @property
    def sessions(self) -> Sessions: ...
    @property
    def sign_in_links(self) -> SignInLinks: ...
    @property
    def preview_links(self) -> PreviewLinks: ...
    @property
    def ssh_grants(self) -> SshGrants: ...
    @property
    def idempotency(self) -> Idempotency: ...
    @property
    def qa_reports(self) -> QaReports: ...
    @property
    def reviews(self) -> Reviews: ...
    @property
    def acceptances(self) -> Acceptances: ...


class Store(Protocol):
    async def write(self, work: Callable[[UnitOfWork], T]) -> T:
        """Run ``work`` in one transaction: committed when it returns, rolled back when it raises.

        After a conflict with another transaction it is rolled back and run again, so it must have no effects outside
        the store. If the caller is cancelled, the transaction ends first, and the cancellation is raised then.
        """

    async def read(self, work: Callable[[UnitOfWork], T]) -> T:
        """Run ``work``, which only reads, on one consistent state of the database."""

    def writes(self, *kinds: Kind) -> int:
        """Return how many transactions of this process wrote records of these kinds; pass it to ``wait_for_write``."""

    async def wait_for_write(self, *kinds: Kind, seen: int, timeout_seconds: float) -> None:
        """Return when ``writes`` of these kinds differs from ``seen``, or at the timeout.

        Writes of other processes do not count, so a task that waits looks from time to time as well.
        """

    async def ready(self) -> bool:
        """Return True if the database answers."""

    async def schema_differences(self) -> Sequence[str]:
        """Return how the database differs from what this program needs: revision, missing tables and columns, damage.

        Returns within seconds, even if the database hangs.
        """

    async def migrate(self) -> None:
        """Migrate the schema to the newest revision."""

    async def close(self) -> None: ...
