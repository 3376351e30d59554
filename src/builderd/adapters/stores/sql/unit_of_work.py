"""Unit of work on SQL: the repositories of one transaction, each made when it is first used.

A transaction uses a few of some forty, and making all of them takes as long as a statement.
"""

from __future__ import annotations

from functools import cached_property

from sqlalchemy import Connection

from builderd.adapters.stores.sql.backup_checks import BackupChecks
from builderd.adapters.stores.sql.backups import BackupKeys, Backups, Restores
from builderd.adapters.stores.sql.build_logs import BuildLogs
from builderd.adapters.stores.sql.builder_lists import BuilderLists
from builderd.adapters.stores.sql.builders import Builders
from builderd.adapters.stores.sql.credentials import Credentials
from builderd.adapters.stores.sql.database_lease import DatabaseLeases
from builderd.adapters.stores.sql.domains import AcmeAccounts, Domains, WildcardCertificates
from builderd.adapters.stores.sql.events import Events
from builderd.adapters.stores.sql.idempotency import Idempotency
from builderd.adapters.stores.sql.leases import Leases
from builderd.adapters.stores.sql.ledger import Ledger
from builderd.adapters.stores.sql.live_totals import LiveTotals
from builderd.adapters.stores.sql.metrics import Metrics
from builderd.adapters.stores.sql.open_builds import OpenBuilds
from builderd.adapters.stores.sql.preview_links import PreviewLinks
from builderd.adapters.stores.sql.qa_reports import QaReports
from builderd.adapters.stores.sql.reviews import Acceptances, Reviews
from builderd.adapters.stores.sql.sandboxes import Sandboxes
from builderd.adapters.stores.sql.services import Services
from builderd.adapters.stores.sql.sessions import Sessions, SignInLinks
from builderd.adapters.stores.sql.ssh_grants import SshGrants
from builderd.adapters.stores.sql.stored_bundles import StoredBundles
from builderd.adapters.stores.sql.stored_times import StoredTimes
from builderd.adapters.stores.sql.stored_uploads import StoredUploads
from builderd.adapters.stores.sql.tenants import Tenants
from builderd.adapters.stores.sql.tokens import Tokens
from builderd.adapters.stores.sql.uploads import Uploads
from builderd.adapters.stores.sql.versions import Versions
from builderd.adapters.stores.sql.webhooks import Deliveries, Webhooks
from builderd.ports import store as port
from builderd.ports.store.writes import Kind


class UnitOfWork:
    """One transaction. With ``writes`` it may write, and so lock rows. Repositories are made at their first use."""

    def __init__(self, connection: Connection, *, writes: bool) -> None:
        self._connection = connection
        self._writes = writes
        #: Kinds of the records that it has written so far.
        self.written = set[Kind]()

    @cached_property
    def database_lease(self) -> port.DatabaseLeases:
        return DatabaseLeases(self._connection)

    @cached_property
    def services(self) -> port.Services:
        return Services(self._connection)

    @cached_property
    def tenants(self) -> port.Tenants:
        return Tenants(self._connection)

    @cached_property
    def tokens(self) -> port.Tokens:
        return Tokens(self._connection, locks=self._writes)

    @cached_property
    def builder_lists(self) -> port.BuilderLists:
        return BuilderLists(self._connection)

    @cached_property
    def _live_totals(self) -> LiveTotals:
        return LiveTotals(self._connection)

    @cached_property
    def builders(self) -> port.Builders:
        return Builders(self._connection, self._live_totals, self.versions.forget, locks=self._writes)

    @cached_property
    def versions(self) -> Versions:
        return Versions(self._connection, self._live_totals)

    @cached_property
    def sandboxes(self) -> port.Sandboxes:
        return Sandboxes(self._connection)

    @cached_property
    def ledger(self) -> port.Ledger:
        return Ledger(self._connection)

    @cached_property
    def open_builds(self) -> port.OpenBuilds:
        return OpenBuilds(self._connection)

    @cached_property
    def events(self) -> port.Events:
        return Events(self._connection, self.written)

    @cached_property
    def metrics(self) -> port.Metrics:
        return Metrics(self._connection)

    @cached_property
    def webhooks(self) -> port.Webhooks:
        return Webhooks(self._connection, self.written, locks=self._writes)

    @cached_property
    def deliveries(self) -> port.Deliveries:
        return Deliveries(self._connection)

    @cached_property
    def build_logs(self) -> port.BuildLogs:
        return BuildLogs(self._connection)

    @cached_property
    def credentials(self) -> port.Credentials:
        return Credentials(self._connection, locks=self._writes)

    @cached_property
    def domains(self) -> port.Domains:
        return Domains(self._connection, self.written, locks=self._writes)

    @cached_property
    def acme_accounts(self) -> port.AcmeAccounts:
        return AcmeAccounts(self._connection)

    @cached_property
    def wildcard_certificates(self) -> port.WildcardCertificates:
        return WildcardCertificates(self._connection)

    @cached_property
    def backups(self) -> port.Backups:
        return Backups(self._connection, self.written)

    @cached_property
    def restores(self) -> port.Restores:
        return Restores(self._connection, self.written)

    @cached_property
    def backup_checks(self) -> port.BackupChecks:
        return BackupChecks(self._connection, locks=self._writes)

    @cached_property
    def backup_keys(self) -> port.BackupKeys:
        return BackupKeys(self._connection, locks=self._writes)

    @cached_property
    def leases(self) -> port.Leases:
        return Leases(self._connection)

    @cached_property
    def stored_bundles(self) -> port.StoredBundles:
        return StoredBundles(self._connection)

    @cached_property
    def stored_uploads(self) -> port.StoredUploads:
        return StoredUploads(self._connection)

    @cached_property
    def stored_times(self) -> port.StoredTimes:
        return StoredTimes(self._connection)

    @cached_property
    def uploads(self) -> port.Uploads:
        return Uploads(self._connection)

    @cached_property
    def sessions(self) -> port.Sessions:
        return Sessions(self._connection)

    @cached_property
    def sign_in_links(self) -> port.SignInLinks:
        return SignInLinks(self._connection)

    @cached_property
    def preview_links(self) -> port.PreviewLinks:
        return PreviewLinks(self._connection)

    @cached_property
    def ssh_grants(self) -> port.SshGrants:
        return SshGrants(self._connection)

    @cached_property
    def idempotency(self) -> port.Idempotency:
        return Idempotency(self._connection)

    @cached_property
    def qa_reports(self) -> port.QaReports:
        return QaReports(self._connection, self.written)

    @cached_property
    def reviews(self) -> port.Reviews:
        return Reviews(self._connection)

    @cached_property
    def acceptances(self) -> port.Acceptances:
        return Acceptances(self._connection)

    def finish(self) -> None:
        """Write what a transaction writes last."""
        if "_live_totals" in self.__dict__:
            self._live_totals.write()
