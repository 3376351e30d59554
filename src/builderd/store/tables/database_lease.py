"""The table of the lease on the database."""

from __future__ import annotations

from sqlalchemy import BigInteger, Boolean, CheckConstraint, Column, Integer, Table, Text

from builderd.store.tables.base import metadata
from builderd.store.types import ForeignText, UtcDateTime

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
