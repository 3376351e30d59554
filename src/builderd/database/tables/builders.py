"""Tables of builders, their sandboxes, versions and gates, leases and SSH grants."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from enum import StrEnum
from typing import Any, get_type_hints

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    Table,
    Text,
    UniqueConstraint,
    false,
    func,
    text,
)

from builderd.builders.model import Desired, Handover, JobType, Status, StopKind, Visibility
from builderd.database.tables.base import (
    COUNTER,
    NAME,
    NEVER_REUSE_IDS,
    builder_columns,
    document,
    index_where,
    metadata,
    unique_where,
    version_key,
)
from builderd.database.types import ExactDecimal, ForeignText, UtcDateTime, enum_column
from builderd.previews.model import RESPONSE_TIMES
from builderd.qa.model import ReportStatus
from builderd.sandboxes.model import EndCause, LogStream
from builderd.versions.model import Isolation, VersionSettings, VersionStatus

#: A builder whose desired state is deleted is in no list, and its name is free.
LIVE = "desired <> 'deleted'"
#: A builder that takes CPU and memory, now or with its candidate.
ACTIVE = "desired = 'running' OR candidate IS NOT NULL"
BACKED_UP = "backup_interval_hours > 0"
CAPPED = "spending_cap IS NOT NULL"


builders = Table(
    "builders",
    metadata,
    Column("id", Text, primary_key=True),
    Column("tenant_id", Text, ForeignKey("tenants.id"), nullable=False),
    Column("name", NAME, nullable=False),
    Column("job_type", enum_column(JobType), nullable=False),
    Column("visibility", enum_column(Visibility), nullable=False),
    Column("service_token", Text, nullable=False),
    Column("host", Text, nullable=False),
    Column("version", Integer, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("updated_at", UtcDateTime, nullable=False),
    Column("auto_stop_interval", BigInteger, nullable=False),
    Column("backup_interval_hours", BigInteger, nullable=False),
    Column("desired", enum_column(Desired), nullable=False),
    Column("desired_by", ForeignText, nullable=False),
    Column("desired_reason", ForeignText, nullable=False),
    Column("run", Integer, key="generation", nullable=False),
    Column("settled_run", Integer, key="observed_generation", nullable=False),
    Column("status", enum_column(Status), nullable=False),
    Column("status_reason", ForeignText, nullable=False),
    Column("exit_code", Integer),
    Column("failure_code", Text),
    Column("last_active_at", UtcDateTime),
    Column("deleted_at", UtcDateTime),
    # A claim: not fields of ``Builder``, written only by ``claims``.
    Column("claimed_by", Text),
    Column("claimed_until", UtcDateTime),
    Column("due_at", UtcDateTime),
    Column("disk", Text, nullable=False, server_default=text("''")),
    Column("candidate", Integer),
    Column("candidate_disk", Text),
    Column("handover", enum_column(Handover)),
    Column("spare_disks", document()),
    Column("spending_cap", ExactDecimal),
    Column("cap_warned_at", UtcDateTime),
    Column("asleep_since", UtcDateTime),
    Column("stop_kind", enum_column(StopKind)),
    Column("opens_with", Integer),
    Column("member", Text, nullable=False, server_default=text("''")),
    # A copy of the current version's disk size, 0 once that disk was given back: the sum over all builders reads one
    # index and joins nothing. Not a field of ``Builder``: written with each row of a builder and of its first version.
    Column("reserved_disk", Double, nullable=False, server_default=text("0")),
    # When the backup schedule looks at the builder again, and since when its backups are untried by a drill. Not fields
    # of ``Builder``: written only by ``backup_checks``, and cleared by what changes the answer.
    Column("backup_check_at", UtcDateTime),
    Column("drill_base_at", UtcDateTime),
    Column("disk_released_at", UtcDateTime),
    Column("disk_has_data", Boolean, nullable=False, server_default=false()),
    Column("location", Text, nullable=False, server_default=text("''")),
    Column("disk_is_made", Boolean, nullable=False, server_default=false()),
    CheckConstraint("version >= 1", name="version"),
    CheckConstraint("auto_stop_interval >= 0", name="auto_stop_interval"),
    CheckConstraint("backup_interval_hours >= 0", name="backup_interval_hours"),
    CheckConstraint("settled_run >= 0 AND settled_run <= run", name="settled_run"),
    CheckConstraint("status <> 'deleted' OR desired = 'deleted'", name="deleted"),
    CheckConstraint("(claimed_by IS NULL) = (claimed_until IS NULL)", name="claim"),
    unique_where("uq_builders_live_name", "tenant_id", LIVE, "name"),
    unique_where("uq_builders_live_host", "host", LIVE),
    Index("uq_builders_service_token", "service_token", unique=True),
    Index("ix_builders_tenant_id_created_at", "tenant_id", "created_at"),
    # Without these, sums, counts and periodic jobs read every builder that is stored, the stopped ones too. Some have
    # the column of their condition: SQLite reads an index alone only when it has all columns.
    index_where("ix_builders_live", LIVE, "tenant_id", "status", "desired", "reserved_disk"),
    index_where("ix_builders_active", ACTIVE, "tenant_id"),
    index_where("ix_builders_backed_up", BACKED_UP, "id"),
    index_where("ix_builders_backup_check_at", f"{BACKED_UP} AND {LIVE}", "backup_check_at"),
    index_where("ix_builders_drill_base_at", f"{BACKED_UP} AND {LIVE}", "drill_base_at"),
    index_where("ix_builders_capped", CAPPED, "tenant_id"),
    Index("ix_builders_status", "status"),
    index_where("ix_builders_location", f"{LIVE} AND location <> ''", "location"),
    Index("ix_builders_tenant_id_updated_at", "tenant_id", "updated_at"),
)


# A claimed builder is due when its claim expires without a release; any other at its due time.
due_since = func.coalesce(builders.c.claimed_until, builders.c.due_at)


Index("ix_builders_due", due_since)


ssh_grants = Table(
    "ssh_grants",
    metadata,
    Column("id", Text, primary_key=True),
    *builder_columns(),
    Column("secret_hash", Text, nullable=False, unique=True),
    Column("created_by", ForeignText, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("expires_at", UtcDateTime, nullable=False),
    Column("revoked_at", UtcDateTime),
    Column("last_used_at", UtcDateTime),
    Column("token_id", Text),
    Index("ix_ssh_grants_builder_id", "builder_id"),
)


preview_links = Table(
    "preview_links",
    metadata,
    Column("id", Text, primary_key=True),
    *builder_columns(),
    Column("secret_hash", Text, nullable=False, unique=True),
    Column("port", Integer),
    Column("created_by", ForeignText, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("expires_at", UtcDateTime, nullable=False),
    Column("token_id", Text),
    Index("ix_preview_links_builder_id", "builder_id"),
)


leases = Table(
    "leases",
    metadata,
    Column("id", Text, primary_key=True),
    Column("builder_id", Text, ForeignKey("builders.id"), nullable=False, index=True),
    Column("reason", ForeignText, nullable=False),
    Column("created_by", ForeignText, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("expires_at", UtcDateTime, nullable=False),
)


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


def setting_columns(*others: str) -> Iterator[Column[Any]]:
    """Yield a column for each setting of a version whose type is plain, but for ``others``, which have no default."""
    types: dict[type, Any] = {bool: Boolean, int: Integer, str: Text}
    hints = get_type_hints(VersionSettings)
    for one in fields(VersionSettings):
        hint = hints[one.name]
        if one.name in others or not isinstance(hint, type):
            continue
        if issubclass(hint, StrEnum) or hint in types:
            default = false() if hint is bool else text(f"{one.default}" if hint is int else f"'{one.default}'")
            kind = enum_column(hint) if issubclass(hint, StrEnum) else types[hint]
            yield Column(one.name, kind, nullable=False, server_default=default)


versions = Table(
    "versions",
    metadata,
    Column("builder_id", Text, ForeignKey("builders.id"), primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("bundle_hash", Text, nullable=False, index=True),
    Column("entrypoint", Text, nullable=False),
    Column("port", Integer, nullable=False),
    Column("env", document(), nullable=False),
    Column("cpu", Double, nullable=False),
    Column("memory", Double, nullable=False),
    Column("disk", Double, nullable=False),
    Column("isolation", enum_column(Isolation), nullable=False),
    Column("credentials", document(), nullable=False),
    Column("skip_review", Boolean, nullable=False),
    Column("skip_qa", Boolean, nullable=False),
    Column("require_qa", Boolean, nullable=False),
    Column("created_by", ForeignText, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("status", enum_column(VersionStatus), nullable=False),
    Column("status_reason", ForeignText, nullable=False),
    Column("layer_key", Text, index=True),
    Column("review_passed", Boolean),
    Column("qa_passed", Boolean),
    Column("failure_code", Text),
    Column("rolled_back_to", Integer),
    Column("fresh_since", Integer),
    Column("review_key", Text, index=True),
    Column("review_until", UtcDateTime),
    Column("build_key", Text, index=True),
    Column("env_file_values", document()),
    Column("released", Boolean, nullable=False, server_default=false()),
    *setting_columns("entrypoint", "port", "isolation", "skip_review", "skip_qa", "require_qa"),
    CheckConstraint("number >= 1", name="number"),
    CheckConstraint("port BETWEEN 1 AND 65535", name="port"),
    CheckConstraint("cpu > 0 AND memory > 0 AND disk > 0", name="resources"),
)


qa_reports = Table(
    "qa_reports",
    metadata,
    Column("builder_id", Text, primary_key=True),
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("status", enum_column(ReportStatus), nullable=False),
    Column("gate", document(), nullable=False),
    Column("gate_at", UtcDateTime),
    Column("checks", document(), nullable=False),
    Column("screenshots", document(), nullable=False),
    Column("note", ForeignText, nullable=False),
    Column("requested_by", ForeignText, nullable=False),
    Column("requested_at", UtcDateTime),
    Column("started_at", UtcDateTime),
    Column("finished_at", UtcDateTime),
    Column("attempts", Integer, nullable=False),
    Column("owner", Text, nullable=False),
    Column("copy_disk", Text),
    version_key("qa_reports"),
)


qa_screenshots = Table(
    "qa_screenshots",
    metadata,
    Column("builder_id", Text, primary_key=True),
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("name", Text, primary_key=True),
    Column("width", Integer, nullable=False),
    Column("height", Integer, nullable=False),
    Column("png", LargeBinary, nullable=False),
    version_key("qa_screenshots"),
)


reviews = Table(
    "reviews",
    metadata,
    # One tenant's only: a report must not reveal that another tenant has the same code.
    Column("tenant_id", Text, ForeignKey("tenants.id"), primary_key=True),
    Column("key", Text, primary_key=True),
    Column("reviewed_at", UtcDateTime, nullable=False, index=True),
    Column("report", document(), nullable=False),
)


acceptances = Table(
    "acceptances",
    metadata,
    Column("builder_id", Text, ForeignKey("builders.id"), primary_key=True),
    Column("fingerprint", Text, primary_key=True),
    Column("reason", ForeignText, nullable=False),
    Column("accepted_by", ForeignText, nullable=False),
    Column("accepted_at", UtcDateTime, nullable=False),
    Column("expires_at", UtcDateTime),
)
