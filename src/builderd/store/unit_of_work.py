"""Unit of work on SQL: the repositories of one transaction, each made when it is first used.

A transaction uses a few of some forty, and making all of them takes as long as a statement.
"""

from __future__ import annotations

from functools import cached_property

from sqlalchemy import Connection

from builderd.store.backup_checks import BackupChecks
from builderd.store.backups import BackupKeys, Backups, Restores
from builderd.store.build_logs import BuildLogs
from builderd.store.builder_lists import BuilderLists
from builderd.store.builders import Builders
from builderd.store.credentials import Credentials
from builderd.store.database_lease import DatabaseLeases
from builderd.store.domains import AcmeAccounts, Domains, WildcardCertificates
from builderd.store.events import Events
from builderd.store.idempotency import Idempotency
from builderd.store.leases import Leases
from builderd.store.ledger import Ledger
from builderd.store.live_totals import LiveTotals
from builderd.store.metrics import Metrics
from builderd.store.open_builds import OpenBuilds
from builderd.store.preview_links import PreviewLinks
from builderd.store.qa_reports import QaReports
from builderd.store.reviews import Acceptances, Reviews
from builderd.store.sandboxes import Sandboxes
from builderd.store.services import Services
from builderd.store.sessions import Sessions, SignInLinks
from builderd.store.ssh_grants import SshGrants
from builderd.store.stored_bundles import StoredBundles
from builderd.store.stored_times import StoredTimes
from builderd.store.stored_uploads import StoredUploads
from builderd.store.tenants import Tenants
from builderd.store.tokens import Tokens
from builderd.store.uploads import Uploads
from builderd.store.versions import Versions
from builderd.store.webhooks import Deliveries, Webhooks
from builderd.store.writes import Kind


class UnitOfWork:
    """One transaction. With ``writes`` it may write, and so lock rows. Repositories are made at their first use."""

    def __init__(self, connection: Connection, *, writes: bool) -> None:
        self._connection = connection
        self._writes = writes
        #: Kinds of the records that it has written so far.
        self.written = set[Kind]()

    @cached_property
    def database_lease(self) -> DatabaseLeases:
        return DatabaseLeases(self._connection)

    @cached_property
    def services(self) -> Services:
        return Services(self._connection)

    @cached_property
    def tenants(self) -> Tenants:
        return Tenants(self._connection)

    @cached_property
    def tokens(self) -> Tokens:
        return Tokens(self._connection, locks=self._writes)

    @cached_property
    def builder_lists(self) -> BuilderLists:
        return BuilderLists(self._connection)

    @cached_property
    def _live_totals(self) -> LiveTotals:
        return LiveTotals(self._connection)

    @cached_property
    def builders(self) -> Builders:
        return Builders(self._connection, self._live_totals, self.versions.forget, locks=self._writes)

    @cached_property
    def versions(self) -> Versions:
        return Versions(self._connection, self._live_totals)

    @cached_property
    def sandboxes(self) -> Sandboxes:
        return Sandboxes(self._connection)

    @cached_property
    def ledger(self) -> Ledger:
        return Ledger(self._connection)

    @cached_property
    def open_builds(self) -> OpenBuilds:
        return OpenBuilds(self._connection)

    @cached_property
    def events(self) -> Events:
        return Events(self._connection, self.written)

    @cached_property
    def metrics(self) -> Metrics:
        return Metrics(self._connection)

    @cached_property
    def webhooks(self) -> Webhooks:
        return Webhooks(self._connection, self.written, locks=self._writes)

    @cached_property
    def deliveries(self) -> Deliveries:
        return Deliveries(self._connection)

    @cached_property
    def build_logs(self) -> BuildLogs:
        return BuildLogs(self._connection)

    @cached_property
    def credentials(self) -> Credentials:
        return Credentials(self._connection, locks=self._writes)

    @cached_property
    def domains(self) -> Domains:
        return Domains(self._connection, self.written, locks=self._writes)

    @cached_property
    def acme_accounts(self) -> AcmeAccounts:
        return AcmeAccounts(self._connection)

    @cached_property
    def wildcard_certificates(self) -> WildcardCertificates:
        return WildcardCertificates(self._connection)

    @cached_property
    def backups(self) -> Backups:
        return Backups(self._connection, self.written)

    @cached_property
    def restores(self) -> Restores:
        return Restores(self._connection, self.written)

    @cached_property
    def backup_checks(self) -> BackupChecks:
        return BackupChecks(self._connection, locks=self._writes)

    @cached_property
    def backup_keys(self) -> BackupKeys:
        return BackupKeys(self._connection, locks=self._writes)

    @cached_property
    def leases(self) -> Leases:
        return Leases(self._connection)

    @cached_property
    def stored_bundles(self) -> StoredBundles:
        return StoredBundles(self._connection)

    @cached_property
    def stored_uploads(self) -> StoredUploads:
        return StoredUploads(self._connection)

    @cached_property
    def stored_times(self) -> StoredTimes:
        return StoredTimes(self._connection)

    @cached_property
    def uploads(self) -> Uploads:
        return Uploads(self._connection)

    @cached_property
    def sessions(self) -> Sessions:
        return Sessions(self._connection)

    @cached_property
    def sign_in_links(self) -> SignInLinks:
        return SignInLinks(self._connection)

    @cached_property
    def preview_links(self) -> PreviewLinks:
        return PreviewLinks(self._connection)

    @cached_property
    def ssh_grants(self) -> SshGrants:
        return SshGrants(self._connection)

    @cached_property
    def idempotency(self) -> Idempotency:
        return Idempotency(self._connection)

    @cached_property
    def qa_reports(self) -> QaReports:
        return QaReports(self._connection, self.written)

    @cached_property
    def reviews(self) -> Reviews:
        return Reviews(self._connection)

    @cached_property
    def acceptances(self) -> Acceptances:
        return Acceptances(self._connection)

    def finish(self) -> None:
        """Write what a transaction writes last."""
        if "_live_totals" in self.__dict__:
            self._live_totals.write()
