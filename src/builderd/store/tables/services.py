"""The tables of a cluster's services and of the lease on the database."""

from __future__ import annotations

from sqlalchemy import BigInteger, Boolean, CheckConstraint, Column, Integer, Table, Text

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
