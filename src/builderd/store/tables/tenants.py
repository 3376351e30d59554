"""The tables of tenants, their tokens and credentials, and of sessions."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, ForeignKey, Integer, LargeBinary, Table, Text, text

from builderd.store.tables.base import NAME, document, metadata
from builderd.store.types import ExactDecimal, ForeignText, UtcDateTime

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
    # Number of its live builders, which lists name: counting them reads an entry of an index for each. Not a field of
    # ``Tenant``: written with the row of a builder that is added or deleted.
    Column("live_builders", Integer, nullable=False, server_default=text("0")),
    # Their reserved disk, in billionths of a GB: an integer, whose sum does not drift. Written as their number is, and
    # with a builder whose version takes over or whose disk is given back.
    Column("live_disk", BigInteger, nullable=False, server_default=text("0")),
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
