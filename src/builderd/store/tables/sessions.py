"""Tables of the web pages' sessions and sign-in links."""

from __future__ import annotations

from sqlalchemy import Column, ForeignKey, Table, Text

from builderd.store.tables.base import metadata
from builderd.store.types import ForeignText, UtcDateTime

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
