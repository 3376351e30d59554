"""Tables of sandboxes, their metrics and the build logs."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Double,
    Index,
    Integer,
    Table,
    Text,
    UniqueConstraint,
    false,
    text,
)

from builderd.domain.previews import RESPONSE_TIMES
from builderd.domain.sandboxes import EndCause, LogStream
from builderd.store.tables.base import COUNTER, NEVER_REUSE_IDS, metadata, unique_where, version_key
from builderd.store.types import ForeignText, UtcDateTime, enum_column

sandboxes = Table(
    "sandboxes",
    metadata,
    Column("id", Text, primary_key=True),
    Column("builder_id", Text, nullable=False),
    Column("version", Integer, nullable=False),
    Column("run", Integer, key="generation", nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("ip", Text),
    Column("started_at", UtcDateTime),
    Column("listening_at", UtcDateTime),
    Column("end_cause", enum_column(EndCause)),
    Column("end_exit_code", Integer),
    Column("end_at", UtcDateTime),
    Column("disk", Text, nullable=False, server_default=text("''")),
    Column("trial", Boolean, nullable=False, server_default=false()),
    Column("release", Boolean, nullable=False, server_default=false()),
    version_key("sandboxes"),
    UniqueConstraint("builder_id", "generation", "attempt"),
    CheckConstraint("attempt >= 1", name="attempt"),
    CheckConstraint("end_cause IS NOT NULL OR (end_exit_code IS NULL AND end_at IS NULL)", name="end"),
    # At most one open sandbox that serves, and one open trial.
    unique_where("uq_sandboxes_open", "builder_id", "end_cause IS NULL", "trial"),
)


metrics = Table(
    "metrics",
    metadata,
    # No foreign key: rows expire by age, also those of a deleted builder.
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
    # Rows of before these were counted have none.
    *(Column(name, BigInteger, nullable=False, server_default=text("0")) for name in RESPONSE_TIMES),
    Index("ix_metrics_start", "start"),
)

class_times = Table(
    "class_times",
    metadata,
    # A row only for a class that had responses.
    Column("builder_id", Text, primary_key=True),
    Column("start", UtcDateTime, primary_key=True),
    Column("class", Text, primary_key=True),
    *(Column(name, BigInteger, nullable=False) for name in RESPONSE_TIMES),
    Index("ix_class_times_start", "start"),
)


build_logs = Table(
    "build_logs",
    metadata,
    Column("id", COUNTER, primary_key=True),
    Column("builder_id", Text, nullable=False),
    Column("version", Integer, nullable=False),
    Column("time", UtcDateTime, nullable=False),
    Column("stream", enum_column(LogStream), nullable=False),
    Column("text", ForeignText, nullable=False),
    version_key("build_logs"),
    Index("ix_build_logs_builder_id_id", "builder_id", "id"),
    **NEVER_REUSE_IDS,
)
