"""The tables as they are now. ``migrations/`` makes them; a test holds both to the same schema.

Columns carry the names of the domain's fields, so that a row becomes its value by name.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Double,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
    false,
    func,
    text,
)

from builderd.adapters.stores.sql.types import ExactDecimal, ForeignText, UtcDateTime, word
from builderd.domain.backups import BackupKind, BackupStatus, RestoreKind, RestoreStatus
from builderd.domain.builders import Desired, Handover, JobType, Status, StopKind, Visibility
from builderd.domain.logs import LogStream
from builderd.domain.prices import Billing
from builderd.domain.qa import ReportStatus
from builderd.domain.sandboxes import EndCause
from builderd.domain.versions import Isolation, VersionStatus
from builderd.domain.webhooks import DeliveryStatus, WebhookStatus

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

# Sorted by bytes on both databases, whatever the locale of a PostgreSQL is.
_Name = Text().with_variant(Text(collation="C"), "postgresql")
# SQLite counts up only in a column of exactly INTEGER (64 bits there).
_Counter = BigInteger().with_variant(Integer(), "sqlite")


def _document() -> JSON:
    # JSON and not JSONB on PostgreSQL: it keeps the order of keys, and takes every string that JSON can write.
    return JSON(none_as_null=True)


def _unique_where(name: str, column: str, condition: str, *more: str) -> Index:
    return Index(name, column, *more, unique=True, sqlite_where=text(condition), postgresql_where=text(condition))


# One row. It is read before a migration: a later revision may add columns that can be NULL, and change nothing else.
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

tenants = Table(
    "tenants",
    metadata,
    Column("id", Text, primary_key=True),
    Column("name", _Name, nullable=False, unique=True),
    Column("created_at", UtcDateTime, nullable=False),
    Column("spending_cap", ExactDecimal),
    Column("cap_warned_at", UtcDateTime),
    # When the spending of its builders is looked at next; never part of a ``Tenant``.
    Column("spending_due_at", UtcDateTime, index=True),
)

tokens = Table(
    "tokens",
    metadata,
    Column("id", Text, primary_key=True),
    Column("tenant_id", Text, ForeignKey("tenants.id"), nullable=False, index=True),
    Column("name", ForeignText, nullable=False),
    Column("secret_hash", Text, nullable=False, unique=True),
    Column("scopes", _document(), nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("expires_at", UtcDateTime),
    Column("revoked_at", UtcDateTime),
    Column("last_used_at", UtcDateTime),
)

#: The columns of a claim: never part of a ``Builder``, and written only by the claims.
CLAIM = ("claimed_by", "claimed_until", "due_at")

#: A builder that somebody wants deleted is in no list any more, and its name is free.
LIVE = "desired <> 'deleted'"

builders = Table(
    "builders",
    metadata,
    Column("id", Text, primary_key=True),
    Column("tenant_id", Text, ForeignKey("tenants.id"), nullable=False),
    Column("name", _Name, nullable=False),
    Column("job_type", word(JobType), nullable=False),
    Column("visibility", word(Visibility), nullable=False),
    Column("service_token", Text, nullable=False),
    Column("host", Text, nullable=False),
    Column("version", Integer, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("updated_at", UtcDateTime, nullable=False),
    Column("auto_stop_interval", BigInteger, nullable=False),
    Column("backup_interval_hours", BigInteger, nullable=False),
    Column("desired", word(Desired), nullable=False),
    Column("desired_by", ForeignText, nullable=False),
    Column("desired_reason", ForeignText, nullable=False),
    Column("run", Integer, nullable=False),
    Column("settled_run", Integer, nullable=False),
    Column("status", word(Status), nullable=False),
    Column("status_reason", ForeignText, nullable=False),
    Column("exit_code", Integer),
    Column("failure_code", Text),
    Column("last_active_at", UtcDateTime),
    Column("deleted_at", UtcDateTime),
    Column("claimed_by", Text),
    Column("claimed_until", UtcDateTime),
    Column("due_at", UtcDateTime),
    Column("disk", Text, nullable=False, server_default=text("''")),
    Column("candidate", Integer),
    Column("candidate_disk", Text),
    Column("handover", word(Handover)),
    Column("spare_disks", _document()),
    Column("spending_cap", ExactDecimal),
    Column("cap_warned_at", UtcDateTime),
    Column("asleep_since", UtcDateTime),
    Column("stop_kind", word(StopKind)),
    Column("opens_with", Integer),
    Column("member", Text, nullable=False, server_default=text("''")),
    CheckConstraint("version >= 1", name="version"),
    CheckConstraint("auto_stop_interval >= 0", name="auto_stop_interval"),
    CheckConstraint("backup_interval_hours >= 0", name="backup_interval_hours"),
    CheckConstraint("settled_run >= 0 AND settled_run <= run", name="settled_run"),
    CheckConstraint("status <> 'deleted' OR desired = 'deleted'", name="deleted"),
    CheckConstraint("(claimed_by IS NULL) = (claimed_until IS NULL)", name="claim"),
    _unique_where("uq_builders_live_name", "tenant_id", LIVE, "name"),
    _unique_where("uq_builders_live_host", "host", LIVE),
    Index("uq_builders_service_token", "service_token", unique=True),
    Index("ix_builders_tenant_id_created_at", "tenant_id", "created_at"),
)

# A leased builder is due when its lease ends without having been given back; any other when it was asked for.
due_since = func.coalesce(builders.c.claimed_until, builders.c.due_at)
Index("ix_builders_due", due_since)

versions = Table(
    "versions",
    metadata,
    Column("builder_id", Text, ForeignKey("builders.id"), primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("bundle_hash", Text, nullable=False, index=True),
    Column("entrypoint", Text, nullable=False),
    Column("port", Integer, nullable=False),
    Column("env", _document(), nullable=False),
    Column("cpu", Double, nullable=False),
    Column("memory", Double, nullable=False),
    Column("disk", Double, nullable=False),
    Column("isolation", word(Isolation), nullable=False),
    Column("credentials", _document(), nullable=False),
    Column("skip_review", Boolean, nullable=False),
    Column("skip_qa", Boolean, nullable=False),
    Column("require_qa", Boolean, nullable=False),
    Column("created_by", ForeignText, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("status", word(VersionStatus), nullable=False),
    Column("status_reason", ForeignText, nullable=False),
    Column("layer_key", Text),
    Column("review_passed", Boolean),
    Column("qa_passed", Boolean),
    Column("failure_code", Text),
    Column("rolled_back_to", Integer),
    Column("fresh_since", Integer),
    Column("install_scripts", Boolean, nullable=False, server_default=false()),
    Column("review_key", Text, index=True),
    Column("review_until", UtcDateTime),
    CheckConstraint("number >= 1", name="number"),
    CheckConstraint("port BETWEEN 1 AND 65535", name="port"),
    CheckConstraint("cpu > 0 AND memory > 0 AND disk > 0", name="resources"),
)


def _of_version(table: str) -> ForeignKeyConstraint:
    return ForeignKeyConstraint(
        ["builder_id", "version"], ["versions.builder_id", "versions.number"], name=f"fk_{table}_version"
    )


sandboxes = Table(
    "sandboxes",
    metadata,
    Column("id", Text, primary_key=True),
    Column("builder_id", Text, nullable=False),
    Column("version", Integer, nullable=False),
    Column("run", Integer, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("ip", Text),
    Column("started_at", UtcDateTime),
    Column("listening_at", UtcDateTime),
    Column("end_cause", word(EndCause)),
    Column("end_exit_code", Integer),
    Column("end_at", UtcDateTime),
    Column("disk", Text, nullable=False, server_default=text("''")),
    Column("trial", Boolean, nullable=False, server_default=false()),
    _of_version("sandboxes"),
    UniqueConstraint("builder_id", "run", "attempt"),
    CheckConstraint("attempt >= 1", name="attempt"),
    CheckConstraint("end_cause IS NOT NULL OR (end_exit_code IS NULL AND end_at IS NULL)", name="end"),
    # One that serves, and one on trial.
    _unique_where("uq_sandboxes_open", "builder_id", "end_cause IS NULL", "trial"),
)


def _of_builder() -> tuple[Column[Any], ...]:
    return (
        Column("tenant_id", Text, ForeignKey("tenants.id"), nullable=False),
        Column("builder_id", Text, ForeignKey("builders.id"), nullable=False),
    )


ledger = Table(
    "ledger",
    metadata,
    Column("id", _Counter, primary_key=True),
    *_of_builder(),
    Column("billing", word(Billing), nullable=False),
    Column("started_at", UtcDateTime, nullable=False),
    Column("ended_at", UtcDateTime),
    Column("hourly_rate", ExactDecimal, nullable=False),
    CheckConstraint("ended_at >= started_at", name="ended_at"),
    Index("ix_ledger_builder_id_started_at", "builder_id", "started_at"),
    _unique_where("uq_ledger_open", "builder_id", "ended_at IS NULL"),
)

# What the segments that have ended come to, by calendar month: sums need not go through all of them.
ledger_months = Table(
    "ledger_months",
    metadata,
    Column("builder_id", Text, ForeignKey("builders.id"), primary_key=True),
    Column("month", UtcDateTime, primary_key=True),
    Column("tenant_id", Text, ForeignKey("tenants.id"), nullable=False),
    Column("running", ExactDecimal, nullable=False),
    Column("paid", ExactDecimal, nullable=False),
    Index("ix_ledger_months_tenant_id_month", "tenant_id", "month"),
)

_never_twice: dict[str, Any] = {"sqlite_autoincrement": True}

events = Table(
    "events",
    metadata,
    Column("id", _Counter, primary_key=True),
    Column("tenant_id", Text, ForeignKey("tenants.id"), nullable=False),
    Column("builder_id", Text, ForeignKey("builders.id")),
    Column("time", UtcDateTime, nullable=False),
    Column("type", Text, nullable=False),
    Column("actor", ForeignText, nullable=False),
    Column("reason", ForeignText, nullable=False),
    Column("details", _document(), nullable=False),
    Index("ix_events_builder_id_id", "builder_id", "id"),
    Index("ix_events_tenant_id_id", "tenant_id", "id"),
    **_never_twice,
)

webhooks = Table(
    "webhooks",
    metadata,
    Column("id", Text, primary_key=True),
    Column("tenant_id", Text, ForeignKey("tenants.id"), nullable=False, index=True),
    Column("url", Text, nullable=False),
    Column("events", _document(), nullable=False),
    Column("secret", LargeBinary, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("created_by", ForeignText, nullable=False),
    Column("place", BigInteger, nullable=False),
    Column("status", word(WebhookStatus), nullable=False),
    Column("status_reason", ForeignText, nullable=False),
    Column("failures", Integer, nullable=False),
    Column("held_until", UtcDateTime),
    Column("last_success_at", UtcDateTime),
)

deliveries = Table(
    "deliveries",
    metadata,
    Column("id", Text, primary_key=True),
    Column("webhook_id", Text, ForeignKey("webhooks.id"), nullable=False),
    # No foreign key: the log of deliveries may outlive the event.
    Column("event_id", BigInteger, nullable=False),
    Column("event_type", Text, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("due_at", UtcDateTime, nullable=False),
    Column("status", word(DeliveryStatus), nullable=False),
    Column("attempts", _document(), nullable=False),
    UniqueConstraint("webhook_id", "event_id"),
    Index("ix_deliveries_webhook_id_status_due_at", "webhook_id", "status", "due_at"),
)

metrics = Table(
    "metrics",
    metadata,
    # No foreign key: rows go by their age, and a builder that is gone needs none.
    Column("builder_id", Text, primary_key=True),
    Column("start", UtcDateTime, primary_key=True),
    Column("seconds", Double, nullable=False),
    Column("cpu_seconds", Double, nullable=False),
    Column("memory_byte_seconds", Double, nullable=False),
    Column("memory_most_bytes", BigInteger, nullable=False),
    Column("disk_most_bytes", BigInteger, nullable=False),
    Column("network_in_bytes", BigInteger, nullable=False),
    Column("network_out_bytes", BigInteger, nullable=False),
    Column("requests", BigInteger, nullable=False),
    Column("answers_2xx", BigInteger, nullable=False),
    Column("answers_3xx", BigInteger, nullable=False),
    Column("answers_4xx", BigInteger, nullable=False),
    Column("answers_5xx", BigInteger, nullable=False),
    Index("ix_metrics_start", "start"),
)

build_logs = Table(
    "build_logs",
    metadata,
    Column("id", _Counter, primary_key=True),
    Column("builder_id", Text, nullable=False),
    Column("version", Integer, nullable=False),
    Column("time", UtcDateTime, nullable=False),
    Column("stream", word(LogStream), nullable=False),
    Column("text", ForeignText, nullable=False),
    _of_version("build_logs"),
    Index("ix_build_logs_builder_id_id", "builder_id", "id"),
    **_never_twice,
)

credentials = Table(
    "credentials",
    metadata,
    Column("tenant_id", Text, ForeignKey("tenants.id"), primary_key=True),
    Column("name", _Name, primary_key=True),
    Column("variables", _document(), nullable=False),
    Column("sealed", LargeBinary, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("updated_at", UtcDateTime, nullable=False),
    Column("last_used_at", UtcDateTime),
    # No foreign key: what a builder used stays true when the builder is gone.
    Column("last_used_by", Text),
)

backups = Table(
    "backups",
    metadata,
    Column("id", Text, primary_key=True),
    *_of_builder(),
    Column("builder_name", Text, nullable=False),
    Column("version", Integer, nullable=False),
    Column("kind", word(BackupKind), nullable=False),
    Column("status", word(BackupStatus), nullable=False, index=True),
    Column("actor", ForeignText, nullable=False),
    Column("owner", Text, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("copy", Text),
    Column("finished_at", UtcDateTime),
    Column("snapshot", Text),
    Column("digest", Text),
    Column("files", BigInteger, nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("added_bytes", BigInteger, nullable=False),
    Column("error", ForeignText, nullable=False),
    Column("expires_at", UtcDateTime, index=True),
    Column("retry_at", UtcDateTime),
    Column("drilled_at", UtcDateTime),
    Column("verified_at", UtcDateTime),
    Column("fault", ForeignText, nullable=False),
    Column("hindrance", _document()),
    _of_version("backups"),
    Index("ix_backups_builder_id_created_at", "builder_id", "created_at"),
    Index("ix_backups_tenant_id_created_at", "tenant_id", "created_at"),
)

restores = Table(
    "restores",
    metadata,
    Column("id", Text, primary_key=True),
    *_of_builder(),
    Column("backup_id", Text, ForeignKey("backups.id"), nullable=False, index=True),
    Column("kind", word(RestoreKind), nullable=False),
    Column("status", word(RestoreStatus), nullable=False, index=True),
    Column("actor", ForeignText, nullable=False),
    Column("owner", Text, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("disk", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("safety", Text),
    Column("made", Text),
    Column("number", Integer),
    Column("finished_at", UtcDateTime),
    Column("error", ForeignText, nullable=False),
    Column("hindrance", _document()),
)

backup_keys = Table(
    "backup_keys",
    metadata,
    Column("tenant_id", Text, ForeignKey("tenants.id"), primary_key=True),
    Column("sealed", LargeBinary, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("checked_at", UtcDateTime, nullable=False),
    Column("pruned_at", UtcDateTime, nullable=False),
    Column("forgotten_at", UtcDateTime),
    Column("fault", ForeignText, nullable=False),
)

ssh_grants = Table(
    "ssh_grants",
    metadata,
    Column("id", Text, primary_key=True),
    *_of_builder(),
    Column("secret_hash", Text, nullable=False, unique=True),
    Column("created_by", ForeignText, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("expires_at", UtcDateTime, nullable=False),
    Column("revoked_at", UtcDateTime),
    Column("last_used_at", UtcDateTime),
    Index("ix_ssh_grants_builder_id", "builder_id"),
)

idempotency = Table(
    "idempotency",
    metadata,
    Column("tenant_id", Text, ForeignKey("tenants.id"), primary_key=True),
    Column("key", Text, primary_key=True),
    Column("body_hash", Text, nullable=False),
    Column("owner", Text, nullable=False),
    Column("created_at", UtcDateTime, nullable=False, index=True),
    # No foreign key: the record may name a builder before that is made, or one that never was.
    Column("builder_id", Text),
    Column("status", Integer),
    Column("headers", _document()),
    Column("body", _document()),
    Column("version", Integer),
)

uploads = Table(
    "uploads",
    metadata,
    Column("id", Text, primary_key=True),
    Column("tenant_id", Text, ForeignKey("tenants.id"), nullable=False, index=True),
    Column("secret_hash", Text, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("expires_at", UtcDateTime, nullable=False),
    Column("size", BigInteger),
    Column("sha256", Text),
    Column("complete", Boolean, nullable=False),
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

qa_reports = Table(
    "qa_reports",
    metadata,
    Column("builder_id", Text, primary_key=True),
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("status", word(ReportStatus), nullable=False),
    Column("gate", _document(), nullable=False),
    Column("gate_at", UtcDateTime),
    Column("checks", _document(), nullable=False),
    Column("screenshots", _document(), nullable=False),
    Column("note", ForeignText, nullable=False),
    Column("requested_by", ForeignText, nullable=False),
    Column("requested_at", UtcDateTime),
    Column("started_at", UtcDateTime),
    Column("finished_at", UtcDateTime),
    Column("attempts", Integer, nullable=False),
    Column("owner", Text, nullable=False),
    Column("copy_disk", Text),
    _of_version("qa_reports"),
)

qa_screenshots = Table(
    "qa_screenshots",
    metadata,
    Column("builder_id", Text, primary_key=True),
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("name", Text, primary_key=True),
    Column("width", Integer, nullable=False),
    Column("height", Integer, nullable=False),
    Column("png", LargeBinary, nullable=False),
    _of_version("qa_screenshots"),
)

reviews = Table(
    "reviews",
    metadata,
    # Of one tenant: that another one has the same code is nobody's business.
    Column("tenant_id", Text, ForeignKey("tenants.id"), primary_key=True),
    Column("key", Text, primary_key=True),
    Column("reviewed_at", UtcDateTime, nullable=False, index=True),
    Column("report", _document(), nullable=False),
)

acceptances = Table(
    "acceptances",
    metadata,
    Column("builder_id", Text, ForeignKey("builders.id"), primary_key=True),
    Column("fingerprint", Text, primary_key=True),
    Column("reason", ForeignText, nullable=False),
    Column("accepted_by", ForeignText, nullable=False),
    Column("accepted_at", UtcDateTime, nullable=False),
    Column("expires_at", UtcDateTime),
)
