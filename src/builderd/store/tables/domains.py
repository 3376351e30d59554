"""Tables of custom domains and of accounts at certificate authorities."""

from __future__ import annotations

from sqlalchemy import Column, Index, Integer, LargeBinary, Table, Text

from builderd.domain.domains import DomainStatus
from builderd.store.tables.base import NAME, builder_columns, metadata, unique_where
from builderd.store.types import ForeignText, UtcDateTime, enum_column

#: A released row only remembers who held the host.
LIVE = "released_at IS NULL"
#: One claim of all tenants holds a host.
HELD = "proven_at IS NOT NULL AND released_at IS NULL"

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
    unique_where("uq_domains_claim", "tenant_id", LIVE, "host"),
    unique_where("uq_domains_held", "host", HELD),
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
