"""Tables of tenants, their tokens, sessions, requests and events, and of the cluster's services."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    Table,
    Text,
    UniqueConstraint,
)

from builderd.database.tables.base import COUNTER, NAME, NEVER_REUSE_IDS, document, metadata
from builderd.database.types import ExactDecimal, ForeignText, UtcDateTime, enum_column
from builderd.events.model import DeliveryStatus, WebhookStatus

tenants = Table(
    "tenants",
    metadata,
    Column("id", Text, primary_key=True),
    Column("name", NAME, nullable=False, unique=True),
    Column("created_at", UtcDateTime, nullable=False),
    Column("spending_cap", ExactDecimal),
    Column("cap_warned_at", UtcDateTime),
    # Time of the next check of its spending; not a field of ``Tenant``.
    Column("spending_due_at", UtcDateTime, index=True),
)


tokens = Table(
    "tokens",
    metadata,
    Column("id", Text, primary_key=True),
    Column("tenant_id", Text, ForeignKey("tenants.id"), nullable=False, index=True),
    Column("name", ForeignText, nullable=False),
    Column("secret_hash", Text, nullable=False, unique=True),
    Column("scopes", document(), nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("expires_at", UtcDateTime),
    Column("revoked_at", UtcDateTime),
    Column("last_used_at", UtcDateTime),
    # [the newest hour since 1970, [calls of each hour]]; none before the first that was counted.
    Column("calls", document()),
    Column("made_by", Text),
)


credentials = Table(
    "credentials",
    metadata,
    Column("tenant_id", Text, ForeignKey("tenants.id"), primary_key=True),
    Column("name", NAME, primary_key=True),
    Column("variables", document(), nullable=False),
    Column("sealed", LargeBinary, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("updated_at", UtcDateTime, nullable=False),
    Column("last_used_at", UtcDateTime),
    # No foreign key: the id stays when the builder is deleted.
    Column("last_used_by", Text),
)


sessions = Table(
    "sessions",
    metadata,
    Column("id", Text, primary_key=True),
    Column("tenant_id", Text, ForeignKey("tenants.id"), nullable=False),
    Column("token_id", Text, ForeignKey("tokens.id"), nullable=False, index=True),
    Column("secret_hash", Text, nullable=False, unique=True),
    Column("client", ForeignText, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("last_used_at", UtcDateTime, nullable=False, index=True),
)


sign_in_links = Table(
    "sign_in_links",
    metadata,
    Column("code_hash", Text, primary_key=True),
    Column("token_id", Text, ForeignKey("tokens.id"), nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("expires_at", UtcDateTime, nullable=False),
)


idempotency = Table(
    "idempotency",
    metadata,
    Column("tenant_id", Text, ForeignKey("tenants.id"), primary_key=True),
    Column("key", Text, primary_key=True),
    Column("body_hash", Text, nullable=False),
    Column("owner", Text, nullable=False),
    Column("created_at", UtcDateTime, nullable=False, index=True),
    # No foreign key: the record names a builder before it exists, or one that was never created.
    Column("builder_id", Text),
    Column("status", Integer),
    Column("headers", document()),
    Column("body", document()),
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
    Column("token_id", Text),
)


# Without a reference to the upload: its bytes are deleted before it, and what is left of one is swept.
upload_chunks = Table(
    "upload_chunks",
    metadata,
    Column("upload_id", Text, primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("size", Integer, nullable=False),
    Column("content", LargeBinary, nullable=False),
)


# A row says that all of the bundle's chunks are there.
stored_bundles = Table(
    "stored_bundles",
    metadata,
    Column("hash", Text, primary_key=True),
    Column("size", BigInteger, nullable=False),
)

bundle_chunks = Table(
    "bundle_chunks",
    metadata,
    Column("hash", Text, primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("content", LargeBinary, nullable=False),
)


events = Table(
    "events",
    metadata,
    Column("id", COUNTER, primary_key=True),
    Column("tenant_id", Text, ForeignKey("tenants.id"), nullable=False),
    Column("builder_id", Text, ForeignKey("builders.id")),
    Column("time", UtcDateTime, nullable=False),
    Column("type", Text, nullable=False),
    Column("actor", ForeignText, nullable=False),
    Column("reason", ForeignText, nullable=False),
    Column("details", document(), nullable=False),
    Index("ix_events_builder_id_id", "builder_id", "id"),
    Index("ix_events_tenant_id_id", "tenant_id", "id"),
    **NEVER_REUSE_IDS,
)


webhooks = Table(
    "webhooks",
    metadata,
    Column("id", Text, primary_key=True),
    Column("tenant_id", Text, ForeignKey("tenants.id"), nullable=False, index=True),
    Column("url", Text, nullable=False),
    Column("events", document(), nullable=False),
    Column("secret", LargeBinary, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("created_by", ForeignText, nullable=False),
    Column("place", BigInteger, nullable=False),
    Column("status", enum_column(WebhookStatus), nullable=False),
    Column("status_reason", ForeignText, nullable=False),
    Column("failures", Integer, nullable=False),
    Column("held_until", UtcDateTime),
    Column("last_success_at", UtcDateTime),
    Column("token_id", Text),
    Column("expires_at", UtcDateTime),
)


deliveries = Table(
    "deliveries",
    metadata,
    Column("id", Text, primary_key=True),
    Column("webhook_id", Text, ForeignKey("webhooks.id"), nullable=False),
    # No foreign key: a delivery may outlive its event.
    Column("event_id", BigInteger, nullable=False),
    Column("event_type", Text, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("due_at", UtcDateTime, nullable=False),
    Column("status", enum_column(DeliveryStatus), nullable=False),
    Column("attempts", document(), nullable=False),
    UniqueConstraint("webhook_id", "event_id"),
    Index("ix_deliveries_webhook_id_status_due_at", "webhook_id", "status", "due_at"),
)


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
