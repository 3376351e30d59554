"""Tables of backups and restores, of domains, and of the ledger."""

from __future__ import annotations

from sqlalchemy import BigInteger, CheckConstraint, Column, ForeignKey, Index, Integer, LargeBinary, Table, Text, text

from builderd.backups.model import BackupKind, BackupStatus, RestoreKind, RestoreStatus
from builderd.database.tables.base import (
    COUNTER,
    NAME,
    builder_columns,
    document,
    index_where,
    metadata,
    unique_where,
    version_key,
)
from builderd.database.types import ExactDecimal, ForeignText, UtcDateTime, enum_column
from builderd.domains.model import DomainStatus
from builderd.money.model import Billing

#: A backup that is to be taken or saved, or has a copy of the disk to delete.
UNFINISHED = "status IN ('planned', 'held') OR copy IS NOT NULL"
#: A backup whose last drill found a fault.
DAMAGED = "fault <> ''"


backups = Table(
    "backups",
    metadata,
    Column("id", Text, primary_key=True),
    *builder_columns(),
    Column("builder_name", Text, nullable=False),
    Column("version", Integer, nullable=False),
    Column("kind", enum_column(BackupKind), nullable=False),
    Column("status", enum_column(BackupStatus), nullable=False, index=True),
    Column("actor", ForeignText, nullable=False),
    Column("owner", Text, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("copy", Text),
    Column("finished_at", UtcDateTime),
    Column("snapshot", Text),
    Column("files", BigInteger, nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("added_bytes", BigInteger, nullable=False),
    Column("error", ForeignText, nullable=False),
    Column("expires_at", UtcDateTime, index=True),
    Column("retry_at", UtcDateTime),
    Column("drilled_at", UtcDateTime),
    Column("verified_at", UtcDateTime),
    Column("fault", ForeignText, nullable=False),
    Column("hindrance", document()),
    version_key("backups"),
    Index("ix_backups_builder_id_created_at", "builder_id", "created_at"),
    Index("ix_backups_tenant_id_created_at", "tenant_id", "created_at"),
    index_where("ix_backups_unfinished", UNFINISHED, "owner"),
    index_where("ix_backups_damaged", DAMAGED, "id"),
)


restores = Table(
    "restores",
    metadata,
    Column("id", Text, primary_key=True),
    *builder_columns(),
    Column("backup_id", Text, ForeignKey("backups.id"), nullable=False, index=True),
    Column("kind", enum_column(RestoreKind), nullable=False),
    Column("status", enum_column(RestoreStatus), nullable=False, index=True),
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
    Column("hindrance", document()),
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


#: A released row only remembers who held the host.
_UNRELEASED = "released_at IS NULL"
#: One claim of all tenants holds a host.
_OWNED = "proven_at IS NOT NULL AND released_at IS NULL"

domains = Table(
    "domains",
    metadata,
    Column("id", Text, primary_key=True),
    *builder_columns(),
    Column("host", NAME, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("created_by", ForeignText, nullable=False),
    Column("status", enum_column(DomainStatus), nullable=False),
    Column("reason", ForeignText, nullable=False),
    Column("failures", Integer, nullable=False),
    Column("next_try_at", UtcDateTime),
    Column("not_before", UtcDateTime),
    Column("proven_at", UtcDateTime),
    Column("released_at", UtcDateTime),
    Column("ordered_at", UtcDateTime),
    Column("certificate", LargeBinary),
    Column("fingerprint", Text),
    Column("expires_at", UtcDateTime),
    Column("warned_days", Integer),
    unique_where("uq_domains_claim", "tenant_id", _UNRELEASED, "host"),
    unique_where("uq_domains_held", "host", _OWNED),
    Index("ix_domains_builder_id", "builder_id"),
    Index("ix_domains_host", "host"),
    Index("ix_domains_next_try_at", "next_try_at"),
)


acme_accounts = Table(
    "acme_accounts",
    metadata,
    Column("directory", Text, primary_key=True),
    Column("key", LargeBinary, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
)


wildcard_certificates = Table(
    "wildcard_certificates",
    metadata,
    Column("domain", Text, primary_key=True),
    Column("next_try_at", UtcDateTime, nullable=False),
    Column("certificate", LargeBinary),
    Column("fingerprint", Text),
    Column("ordered_at", UtcDateTime),
    Column("expires_at", UtcDateTime),
    Column("failures", Integer, nullable=False),
    Column("reason", ForeignText, nullable=False),
)


#: A segment that continues.
OPEN = "ended_at IS NULL"


ledger = Table(
    "ledger",
    metadata,
    Column("id", COUNTER, primary_key=True),
    *builder_columns(),
    Column("billing", enum_column(Billing), nullable=False),
    Column("started_at", UtcDateTime, nullable=False),
    Column("ended_at", UtcDateTime),
    Column("hourly_rate", ExactDecimal, nullable=False),
    CheckConstraint("ended_at >= started_at", name="ended_at"),
    Index("ix_ledger_builder_id_started_at", "builder_id", "started_at"),
    Index("ix_ledger_tenant_id_started_at", "tenant_id", "started_at"),
    unique_where("uq_ledger_open", "builder_id", OPEN),
    # All that a sum over a tenant's open segments reads.
    index_where("ix_ledger_open", OPEN, "tenant_id", "billing", "hourly_rate", "started_at", "ended_at"),
)


# Builds that run, which the next service charges if this one is killed. Few at a time.
open_builds = Table(
    "open_builds",
    metadata,
    Column("id", Text, primary_key=True),
    *builder_columns(),
    Column("started_at", UtcDateTime, nullable=False),
    Column("seen_at", UtcDateTime, nullable=False),
)


# Sums of closed segments by calendar month, so that a total reads no more than one row a month.
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


# Sums of ``ledger_months`` over all builders of a tenant, so that its total does not read a row of each.
tenant_months = Table(
    "tenant_months",
    metadata,
    Column("tenant_id", Text, ForeignKey("tenants.id"), primary_key=True),
    Column("month", UtcDateTime, primary_key=True),
    Column("running", ExactDecimal, nullable=False),
    Column("paid", ExactDecimal, nullable=False),
    # JSON: {"1": [running, paid], …} by day of the month, the numbers as text. A month's row is read and written with
    # each segment that closes; rows of days would be a read and a write more.
    Column("days", Text, nullable=False, server_default=text("'{}'")),
)
