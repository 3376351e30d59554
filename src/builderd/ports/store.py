"""The store: everything that builderd remembers, behind one unit of work.

A unit of work is one transaction. Services get it from their caller; only the door or the reconciler
opens one, through ``Store.write`` or ``Store.read``, and so commits. The functions run in a worker thread
and must not wait on anything but the store.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any, Protocol, TypeVar

from builderd.domain.backups import Backup, BackupKey, BackupStatus, Restore
from builderd.domain.builders import Builder, JobType, Status
from builderd.domain.credentials import Credential
from builderd.domain.database_lease import DatabaseLease, Instance
from builderd.domain.events import Event
from builderd.domain.ids import BackupId, BuilderId, RestoreId, SandboxId, TenantId, TokenId, UploadId, WebhookId
from builderd.domain.leases import Lease, LeaseId
from builderd.domain.logs import LogLine
from builderd.domain.metrics import SampleTarget, UsageBucket
from builderd.domain.prices import Segment, Sum
from builderd.domain.qa import QaReport, Screenshot
from builderd.domain.quotas import Allocation
from builderd.domain.reviews import Acceptance, Report
from builderd.domain.sandboxes import Sandbox
from builderd.domain.ssh import Grant
from builderd.domain.tenants import Tenant
from builderd.domain.tokens import Token
from builderd.domain.uploads import Upload
from builderd.domain.versions import Version
from builderd.domain.webhooks import Delivery, Webhook

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class BuilderQuery:
    """Filters and page of a list. ``sort``: ``created_at``, ``-created_at`` or ``name``; deleted ones are left out."""

    name: str | None = None
    status: Status | None = None
    job_type: JobType | None = None
    sort: str = "-created_at"
    page: int = 1
    per_page: int = 25


@dataclass(frozen=True, slots=True)
class EventQuery:
    """Filters of events. ``types`` are patterns of ``domain.events``, none for all; ``until`` is not in it."""

    builder: BuilderId | None = None
    types: Sequence[str] = ()
    since: datetime | None = None
    until: datetime | None = None


@dataclass(frozen=True, slots=True)
class IdempotencyRecord:
    """A retry key of a tenant. ``status`` is None until the first call was answered.

    ``version`` is the one that it deploys. ``owner`` names the process that works on the first call; ``body_hash``
    the sha256 of method, path and body.
    """

    tenant_id: TenantId
    key: str
    body_hash: str
    owner: str
    created_at: datetime
    builder_id: BuilderId | None = None
    version: int | None = None
    status: int | None = None
    headers: Mapping[str, str] | None = None
    body: Mapping[str, Any] | None = None


class Tenants(Protocol):
    def add(self, tenant: Tenant) -> None: ...
    def get(self, tenant: TenantId) -> Tenant | None: ...
    def by_name(self, name: str) -> Tenant | None: ...
    def cap(self, tenant: TenantId, amount: Decimal | None) -> None:
        """What it may spend in a month; it is warned anew."""

    def warned(self, tenant: TenantId, at: datetime) -> None:
        """It was told that most of it is spent."""

    def make_spending_due(self, tenant: TenantId, at: datetime) -> None:
        """Look at its spending no later than this."""

    def spending_due(self, now: datetime) -> Sequence[tuple[TenantId, datetime]]:
        """Whose spending is due to be looked at, and since when, the longest due first."""

    def postpone_spending(self, tenant: TenantId, seen: datetime, at: datetime | None) -> bool:
        """Look again at ``at`` (None: when something changes); False when it is not due at ``seen`` any more."""


class Tokens(Protocol):
    def add(self, token: Token) -> None: ...
    def by_secret_hash(self, secret_hash: str) -> Token | None: ...
    def list(self, tenant: TenantId) -> Sequence[Token]: ...
    def touch(self, token: TokenId, at: datetime) -> None:
        """Record its last use."""

    def revoke(self, token: TokenId, at: datetime) -> None: ...


class Builders(Protocol):
    def add(self, builder: Builder) -> None:
        """Raises ``NameTaken`` (with the other's uuid) when the tenant has a live builder of that name."""

    def get(self, builder: BuilderId, *, lock: bool = False) -> Builder | None:
        """``lock`` keeps other writers of this row waiting until the unit of work ends."""

    def by_name(self, tenant: TenantId, name: str) -> Builder | None:
        """The live builder of that name."""

    def by_host(self, host: str, *, lock: bool = False) -> Builder | None:
        """The live builder whose preview has this host name."""

    def by_service_token(self, service_token: str) -> Builder | None:
        """The live builder that this token belongs to."""

    def list(self, tenant: TenantId, query: BuilderQuery) -> tuple[Sequence[Builder], int]:
        """One page and the total number."""

    def of_tenant(self, tenant: TenantId, *, deleted: bool) -> Sequence[Builder]:
        """All of a tenant, oldest first, with or without the deleted ones."""

    def backed_up(self) -> Sequence[Builder]:
        """Those that want backups and are not wanted deleted, of all tenants."""

    def ids(self) -> Sequence[BuilderId]:
        """All that are not deleted, of all tenants."""

    def count_by_status(self) -> Mapping[Status, int]:
        """Over all tenants, deleted ones left out."""

    def lock_demand(self) -> None:
        """Keep others who promise something waiting until this unit of work ends."""

    def allocated(self, tenant: TenantId | None = None) -> Allocation:
        """What is promised to the live builders of a tenant, or of all."""

    def that_may_idle(self) -> Sequence[Builder]:
        """Those that run, are wanted running, and have an auto-stop interval, of all tenants."""

    def save(self, builder: Builder) -> None:
        """Replace the row (never its claim). This unit of work must have added or locked it: ``RuntimeError``."""

    # Claims: one control plane at a time works on a builder. Compare-and-set on a lease.

    def claim(self, builder: BuilderId, owner: str, now: datetime, until: datetime) -> bool:
        """Take or renew the lease; False while somebody else's is not over."""

    def holds(self, builder: BuilderId, owner: str, now: datetime) -> bool:
        """Whether the lease is this owner's and not over."""

    def release(self, builder: BuilderId, owner: str, due_at: datetime | None) -> None:
        """Give the lease back; look again at ``due_at``, or only when something changes."""

    def make_due(self, builder: BuilderId, at: datetime) -> None:
        """Look again no later than this."""

    def due(self, now: datetime, limit: int) -> Sequence[BuilderId]:
        """Builders that are due and not leased, the longest due first."""


class Versions(Protocol):
    def add(self, version: Version) -> None: ...
    def get(self, builder: BuilderId, number: int) -> Version | None: ...
    def list(self, builder: BuilderId) -> Sequence[Version]:
        """Newest first."""

    def current(self, tenant: TenantId) -> Mapping[BuilderId, Version]:
        """That of each builder of the tenant, deleted ones included."""

    def save(self, version: Version) -> None: ...
    def uses_bundle(self, bundle_hash: str) -> bool:
        """Whether a version of a builder that is not deleted has this bundle, or one that there is a backup of.

        A dropped version has none.
        """

    def layers(self) -> Collection[str]:
        """The keys of the layers of all versions that builders which are not deleted may still run."""


class Sandboxes(Protocol):
    def add(self, sandbox: Sandbox) -> None: ...
    def get(self, sandbox: SandboxId) -> Sandbox | None: ...
    def save(self, sandbox: Sandbox) -> None: ...
    def open_of(self, builder: BuilderId) -> Sandbox | None:
        """The one that has not ended, if any (there is at most one); a trial does not count."""

    def list(self, builder: BuilderId) -> Sequence[Sandbox]:
        """Oldest first."""

    def of_run(self, builder: BuilderId, run: int) -> Sequence[Sandbox]:
        """Those of one run, oldest first."""

    def open_or_of_run(self, builder: BuilderId, run: int) -> Sequence[Sandbox]:
        """The same, and those of other runs that have not ended, trials too."""

    def expire(self, before: datetime, limit: int) -> int:
        """Remove at most so many that ended before this, but for those of a builder's present run; how many."""

    def thin(self, keep: int, limit: int) -> int:
        """Remove at most so many that ended, of runs with more than ``keep``: all but the latest, and of those that
        listened the last; how many."""


class Ledger(Protocol):
    def open(self, segment: Segment) -> None:
        """Begin a segment; the builder must have none open."""

    def close(self, builder: BuilderId, at: datetime) -> None:
        """End the open segment, if any, never before its start."""

    def builders_over(self, since: datetime, until: datetime) -> Sequence[BuilderId]:
        """Those that have a segment over some of this time, of all tenants, deleted ones too."""

    def skip(self, builder: BuilderId, since: datetime, until: datetime) -> None:
        """No time has passed in between: what goes over it is cut in two. Done again, it changes nothing.

        The builder must be locked in this unit of work. Costs no more for a long history.
        """

    def current(self, builder: BuilderId) -> Segment | None: ...
    def of_builder(self, builder: BuilderId) -> Sequence[Segment]: ...
    def of_builders(
        self, builders: Sequence[BuilderId], since: datetime | None = None, until: datetime | None = None
    ) -> Mapping[BuilderId, Sequence[Segment]]:
        """Whole segments that reach into [since, until), by builder; those without one are left out."""

    def totals(self, builders: Sequence[BuilderId], now: datetime) -> Mapping[BuilderId, Sum]:
        """Of all their time up to now; those without a segment are left out. Costs no more for a long history."""

    def of_month(self, tenant: TenantId, now: datetime) -> Mapping[BuilderId, Sum]:
        """Of the present month's time up to now, by the builders of the tenant that were billed in it."""

    def open_of(self, tenant: TenantId) -> Sequence[Segment]:
        """The segments of the tenant's builders that go on."""


class Events(Protocol):
    def add(self, event: Event) -> Event:
        """Store it; the answer carries its id."""

    def of_builder(self, builder: BuilderId, *, after: int = 0, limit: int = 1000) -> Sequence[Event]:
        """Oldest first, those with a greater id."""

    def get(self, event_id: int) -> Event | None: ...
    def page(self, tenant: TenantId, query: EventQuery, *, page: int, per_page: int) -> tuple[Sequence[Event], int]:
        """Newest first: one page (from 1), and the total number."""

    def following(self, tenant: TenantId, query: EventQuery, *, after: int, limit: int) -> Sequence[Event]:
        """Oldest first, those with a greater id.

        Events of a tenant appear in the order of their ids: none is ever added below one that was seen.
        """

    def last_id(self, tenant: TenantId) -> int:
        """The greatest id among the tenant's events, 0 when there is none."""

    def expire(self, before: datetime, limit: int) -> int:
        """Remove at most so many of the oldest, as far as they happened before this; how many."""


class Webhooks(Protocol):
    def add(self, webhook: Webhook) -> None: ...
    def get(self, webhook: WebhookId, *, lock: bool = False) -> Webhook | None:
        """``lock`` keeps other writers of this row waiting until the unit of work ends.

        Take it before the deliveries of the webhook are written, and save only what was read with it.
        """

    def list(self, tenant: TenantId) -> Sequence[Webhook]:
        """Oldest first."""

    def all(self) -> Sequence[Webhook]:
        """Of all tenants."""

    def save(self, webhook: Webhook) -> None:
        """Nothing happens when it is gone."""

    def delete(self, webhook: WebhookId) -> None:
        """With its deliveries."""

    def behind(self) -> Sequence[WebhookId]:
        """The active ones whose tenant has events after their place."""

    def due(self, now: datetime) -> Sequence[WebhookId]:
        """The active ones that are not held, and have deliveries that are due."""


class Deliveries(Protocol):
    def add(self, delivery: Delivery) -> None: ...
    def get(self, delivery: str) -> Delivery | None: ...
    def save(self, delivery: Delivery) -> None:
        """Nothing happens when it is gone."""

    def claim(self, webhook: WebhookId, now: datetime, until: datetime) -> Delivery | None:
        """The oldest that is due, which then is due again only at ``until``: of several who ask, one gets it."""

    def pending(self, webhook: WebhookId) -> int:
        """How many wait."""

    def page(self, webhook: WebhookId, *, page: int, per_page: int) -> tuple[Sequence[Delivery], int]:
        """Newest first: one page (from 1), and the total number."""

    def expire(self, before: datetime, limit: int) -> int:
        """Remove at most so many that were made before this and are over; how many.

        Those of a disabled webhook are, since nothing is told to it any more.
        """


class Metrics(Protocol):
    def watched(self) -> Sequence[SampleTarget]:
        """The sandboxes of all tenants that were started and have not ended; trials do not count."""

    def add(self, steps: Sequence[UsageBucket]) -> None:
        """Add these to what is recorded of the same builders and times."""

    def of_builder(self, builder: BuilderId, since: datetime) -> Sequence[UsageBucket]:
        """Those that begin at or after this, oldest first."""

    def expire(self, before: datetime) -> int:
        """Remove those that began before this; how many."""


class BuildLogs(Protocol):
    def add(self, builder: BuilderId, version: int, lines: Sequence[LogLine]) -> None: ...
    def before_last(self, builder: BuilderId, count: int | None, since: datetime | None = None) -> tuple[int, int]:
        """The id after which the last ``count`` lines (None: all) from ``since`` on come, and how many they are."""

    def following(self, builder: BuilderId, after: int, limit: int) -> Sequence[tuple[int, int, LogLine]]:
        """(id, version, line), oldest first, at most so many of those with a greater id."""

    def expire(self, before: datetime, limit: int) -> int:
        """Remove at most so many of the oldest lines, as far as they are from before this; how many."""

    def delete(self, builder: BuilderId) -> None: ...


class Credentials(Protocol):
    def add(self, credential: Credential) -> None: ...
    def get(self, tenant: TenantId, name: str) -> Credential | None: ...
    def list(self, tenant: TenantId) -> Sequence[Credential]:
        """By name."""

    def all(self) -> Sequence[Credential]:
        """Of all tenants; in a unit of work that writes, nobody else changes one of them until it ends."""

    def save(self, credential: Credential) -> None: ...
    def touch(self, tenant: TenantId, name: str, at: datetime, by: BuilderId) -> None:
        """It was last used then, by this builder; nothing else of it is written. Does nothing when it is gone."""

    def delete(self, tenant: TenantId, name: str) -> None:
        """Idempotent."""


class Backups(Protocol):
    def add(self, backup: Backup) -> None: ...
    def get(self, backup: BackupId) -> Backup | None: ...
    def save(self, backup: Backup) -> None:
        """Raises ``LookupError`` when it is gone."""

    def delete(self, backup: BackupId) -> None:
        """With the restores of it. Idempotent."""

    def of_builder(self, builder: BuilderId) -> Sequence[Backup]:
        """Newest first."""

    def of_tenant(self, tenant: TenantId) -> Sequence[Backup]:
        """Newest first."""

    def open(self, owner: str) -> Sequence[Backup]:
        """Those that this service has still to take or to save, or whose copy it has to remove, oldest first."""

    def newest_of(
        self, builders: Sequence[BuilderId], status: BackupStatus | None = None
    ) -> Mapping[BuilderId, Backup]:
        """The last that was tried, or the last of this status, by builder; those without one are left out."""

    def expired(self, now: datetime) -> Sequence[Backup]:
        """Those whose time is over."""

    def builders(self) -> Sequence[BuilderId]:
        """All that have backups."""

    def count_by_status(self) -> Mapping[BackupStatus, int]: ...
    def count_faults(self) -> int:
        """Backups whose last drill found something wrong with them."""


class Restores(Protocol):
    def add(self, restore: Restore) -> None: ...
    def get(self, restore: RestoreId) -> Restore | None: ...
    def save(self, restore: Restore) -> None:
        """Raises ``LookupError`` when it is gone."""

    def open(self, owner: str) -> Sequence[Restore]:
        """Those that this service has still to carry out, oldest first."""

    def open_of(self, builder: BuilderId) -> Sequence[Restore]:
        """The same of one builder, whoever carries them out."""

    def last_drill(self, builder: BuilderId) -> Restore | None:
        """The one that was asked for last, open or not, of a backup that is still there."""


class BackupKeys(Protocol):
    def add(self, key: BackupKey) -> None:
        """Raises ``Conflict`` when the tenant has one."""

    def get(self, tenant: TenantId, *, lock: bool = False) -> BackupKey | None:
        """``lock`` keeps other writers of this row waiting until the unit of work ends."""

    def lacking(self) -> Sequence[TenantId]:
        """The tenants that have none."""

    def all(self) -> Sequence[BackupKey]: ...
    def save(self, key: BackupKey) -> None: ...


class Leases(Protocol):
    def add(self, lease: Lease) -> None: ...
    def save(self, lease: Lease) -> None: ...
    def of_builder(self, builder: BuilderId) -> Sequence[Lease]:
        """The oldest first, those that are over included until they are removed."""

    def lasting(self, builder: BuilderId, now: datetime) -> Sequence[Lease]:
        """The oldest first, but for those that are over."""

    def expire(self, builder: BuilderId, now: datetime) -> None:
        """Remove those of the builder that are over."""

    def delete(self, lease: LeaseId) -> None:
        """Idempotent."""

    def delete_of(self, builder: BuilderId) -> None:
        """All of the builder."""


class Uploads(Protocol):
    def add(self, upload: Upload) -> None: ...
    def get(self, upload: UploadId) -> Upload | None: ...
    def save(self, upload: Upload) -> bool:
        """Whether it is there still: one that was deleted does not come back."""

    def of_tenant(self, tenant: TenantId) -> Sequence[Upload]:
        """The oldest first, those that are over included until they are deleted."""

    def expired(self, now: datetime) -> Sequence[UploadId]:
        """Those of any tenant that are over."""

    def delete(self, upload: UploadId) -> None:
        """Idempotent."""


class SshGrants(Protocol):
    def add(self, grant: Grant) -> None: ...
    def get(self, grant_id: str) -> Grant | None: ...
    def by_secret_hash(self, secret_hash: str) -> Grant | None: ...
    def valid_of(self, builder: BuilderId, now: datetime) -> Sequence[Grant]:
        """Those that are neither revoked nor expired, oldest first."""

    def touch(self, grant_id: str, at: datetime) -> None:
        """Record its last use."""

    def revoke(self, grant_id: str, at: datetime) -> None: ...
    def expire(self, before: datetime) -> int:
        """Remove those that ended before this; how many."""


class Idempotency(Protocol):
    def get(self, tenant: TenantId, key: str) -> IdempotencyRecord | None: ...
    def add(self, record: IdempotencyRecord) -> None:
        """Raises ``Conflict`` when the tenant used the key already."""

    def save(self, record: IdempotencyRecord) -> None: ...
    def delete(self, tenant: TenantId, key: str) -> None: ...
    def expire(self, before: datetime) -> int:
        """Remove records made before this; how many."""


class QaReports(Protocol):
    def get(self, builder: BuilderId, version: int) -> QaReport | None: ...
    def save(self, report: QaReport) -> None:
        """Add or replace it; the builder must be locked."""

    def unfinished(self) -> Sequence[QaReport]:
        """Those that are still to be made, or whose copy may still be there; the longest wanted first."""

    def put_screenshots(self, builder: BuilderId, version: int, screenshots: Sequence[Screenshot]) -> None:
        """In the place of those that there were."""

    def screenshot(self, builder: BuilderId, version: int, name: str) -> Screenshot | None: ...
    def delete(self, builder: BuilderId) -> None:
        """Those of the builder, with their screenshots, but none whose copy may still be there."""


class Reviews(Protocol):
    def get(self, tenant: TenantId, key: str) -> Report | None:
        """By ``Report.key``."""

    def put(self, tenant: TenantId, report: Report) -> None:
        """In the place of one with the same key. A character that cannot be stored becomes U+FFFD."""

    def expire(self, before: datetime, limit: int) -> int:
        """Remove at most so many that were made before this and that no version of a live builder has; how many."""


class Acceptances(Protocol):
    def save(self, acceptance: Acceptance) -> None:
        """In the place of an earlier one of the same finding. The builder must be locked."""

    def of_builder(self, builder: BuilderId) -> Sequence[Acceptance]:
        """Oldest first, those that are over included."""

    def delete(self, builder: BuilderId) -> None:
        """All of the builder."""


class DatabaseLeases(Protocol):
    """The one lease on the database. Times are by the database's clock."""

    def has_table(self) -> bool:
        """Whether the schema has leases at all: revision 0017 and later."""

    def get(self) -> DatabaseLease | None:
        """The lease, or None when the database was never owned. Works before a migration too."""

    def take(self, instance: Instance, seen: DatabaseLease | None) -> DatabaseLease | None:
        """Make the instance the owner, with the next term; None when the lease is not as it was seen any more.

        Waits for the units of work that the owner before has open.
        """

    def renew(self, term: int) -> bool:
        """Record that the owner lives; False when the lease has another term by now."""

    def release(self, term: int) -> None:
        """Record that the owner ended in order."""

    def adopt(self, instance: Instance) -> None:
        """Move all live builders to the instance, and what other services had claimed or begun."""


class UnitOfWork(Protocol):
    @property
    def database_lease(self) -> DatabaseLeases: ...
    @property
    def tenants(self) -> Tenants: ...
    @property
    def tokens(self) -> Tokens: ...
    @property
    def builders(self) -> Builders: ...
    @property
    def versions(self) -> Versions: ...
    @property
    def sandboxes(self) -> Sandboxes: ...
    @property
    def ledger(self) -> Ledger: ...
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
    def backups(self) -> Backups: ...
    @property
    def restores(self) -> Restores: ...
    @property
    def backup_keys(self) -> BackupKeys: ...
    @property
    def leases(self) -> Leases: ...
    @property
    def uploads(self) -> Uploads: ...
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
        """Run it in one transaction: committed when it returns, rolled back when it raises.

        Where it met another transaction it is taken back and run again, so it has no effects but in the store.
        Also when the caller is cancelled it is done, and the cancellation raised only then.
        """

    async def read(self, work: Callable[[UnitOfWork], T]) -> T:
        """The same for work that only reads; sees one consistent state."""

    async def ready(self) -> bool:
        """Whether the database answers."""

    async def schema_faults(self) -> Sequence[str]:
        """What differs from the schema that this program needs: revision, missing tables and columns; empty: nothing.

        Answers within seconds, whatever the database does.
        """

    async def migrate(self) -> None:
        """Bring the schema to the present revision."""

    async def close(self) -> None: ...
