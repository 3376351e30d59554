"""The table of a cluster's services."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Table, Text

from builderd.store.tables.base import metadata
from builderd.store.types import ForeignText, UtcDateTime

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
