"""Tables of events, webhooks and deliveries."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, ForeignKey, Index, Integer, LargeBinary, Table, Text, UniqueConstraint

from builderd.domain.events import DeliveryStatus, WebhookStatus
from builderd.store.tables.base import COUNTER, NEVER_REUSE_IDS, document, metadata
from builderd.store.types import ForeignText, UtcDateTime, enum_column

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
