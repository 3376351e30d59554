"""Table of builders, which the queries of most nouns join."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    Table,
    Text,
    false,
    func,
    text,
)

from builderd.builders.model import Desired, Handover, JobType, Status, StopKind, Visibility
from builderd.database.columns import NAME, document, index_where, metadata, unique_where
from builderd.database.types import ExactDecimal, ForeignText, UtcDateTime, enum_column

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
    Column("scale", document()),
    # The sum of ``scale``, which sums over all builders need. Not a field of ``Builder``.
    Column("further", Integer, nullable=False, server_default=text("0")),
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
