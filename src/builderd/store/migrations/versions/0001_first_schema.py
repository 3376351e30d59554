"""The first schema: tenants, tokens, builders, versions, sandboxes, ledger, events, build logs, retry keys."""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

COUNTER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
NAME = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
TIME = sa.DateTime(timezone=True)
AMOUNT = sa.Text().with_variant(sa.Numeric(), "postgresql")
WORD = sa.String(32)


def upgrade() -> None:
    op.create_table(
        "tenants",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("name", NAME, nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_tenants"),
        sa.UniqueConstraint("name", name="uq_tenants_name"),
    )
    op.create_table(
        "tokens",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("secret_hash", sa.Text(), nullable=False),
        sa.Column("scopes", sa.JSON(), nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("expires_at", TIME),
        sa.Column("revoked_at", TIME),
        sa.Column("last_used_at", TIME),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name="fk_tokens_tenant_id"),
        sa.PrimaryKeyConstraint("id", name="pk_tokens"),
        sa.UniqueConstraint("secret_hash", name="uq_tokens_secret_hash"),
    )
    op.create_index("ix_tokens_tenant_id", "tokens", ["tenant_id"])
    op.create_table(
        "builders",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("name", NAME, nullable=False),
        sa.Column("job_type", WORD, nullable=False),
        sa.Column("visibility", WORD, nullable=False),
        sa.Column("service_token", sa.Text(), nullable=False),
        sa.Column("host", sa.Text(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("updated_at", TIME, nullable=False),
        sa.Column("auto_stop_interval", sa.BigInteger(), nullable=False),
        sa.Column("backup_interval_hours", sa.BigInteger(), nullable=False),
        sa.Column("desired", WORD, nullable=False),
        sa.Column("desired_by", sa.Text(), nullable=False),
        sa.Column("desired_reason", sa.Text(), nullable=False),
        sa.Column("run", sa.Integer(), nullable=False),
        sa.Column("settled_run", sa.Integer(), nullable=False),
        sa.Column("status", WORD, nullable=False),
        sa.Column("status_reason", sa.Text(), nullable=False),
        sa.Column("exit_code", sa.Integer()),
        sa.Column("failure_code", sa.Text()),
        sa.Column("last_active_at", TIME),
        sa.Column("deleted_at", TIME),
        sa.Column("claimed_by", sa.Text()),
        sa.Column("claimed_until", TIME),
        sa.Column("due_at", TIME),
        sa.CheckConstraint("status <> 'deleted' OR desired = 'deleted'", name="ck_builders_deleted"),
        sa.CheckConstraint("(claimed_by IS NULL) = (claimed_until IS NULL)", name="ck_builders_claim"),
        sa.CheckConstraint("auto_stop_interval >= 0", name="ck_builders_auto_stop_interval"),
        sa.CheckConstraint("backup_interval_hours >= 0", name="ck_builders_backup_interval_hours"),
        sa.CheckConstraint("settled_run >= 0 AND settled_run <= run", name="ck_builders_settled_run"),
        sa.CheckConstraint("version >= 1", name="ck_builders_version"),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name="fk_builders_tenant_id"),
        sa.PrimaryKeyConstraint("id", name="pk_builders"),
    )
    op.create_index("ix_builders_tenant_id_created_at", "builders", ["tenant_id", "created_at"])
    op.create_index("uq_builders_live_host", "builders", ["host"], unique=True, **where("desired <> 'deleted'"))
    op.create_index(
        "uq_builders_live_name", "builders", ["tenant_id", "name"], unique=True, **where("desired <> 'deleted'")
    )
    op.create_index("uq_builders_service_token", "builders", ["service_token"], unique=True)
    op.create_index("ix_builders_due", "builders", [sa.text("coalesce(claimed_until, due_at)")])
    op.create_table(
        "versions",
        sa.Column("builder_id", sa.Text(), nullable=False),
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("bundle_hash", sa.Text(), nullable=False),
        sa.Column("entrypoint", sa.Text(), nullable=False),
        sa.Column("port", sa.Integer(), nullable=False),
        sa.Column("env", sa.JSON(), nullable=False),
        sa.Column("cpu", sa.Double(), nullable=False),
        sa.Column("memory", sa.Double(), nullable=False),
        sa.Column("disk", sa.Double(), nullable=False),
        sa.Column("isolation", WORD, nullable=False),
        sa.Column("credentials", sa.JSON(), nullable=False),
        sa.Column("skip_review", sa.Boolean(), nullable=False),
        sa.Column("skip_qa", sa.Boolean(), nullable=False),
        sa.Column("require_qa", sa.Boolean(), nullable=False),
        sa.Column("created_by", sa.Text(), nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("status", WORD, nullable=False),
        sa.Column("status_reason", sa.Text(), nullable=False),
        sa.Column("layer_key", sa.Text()),
        sa.Column("review_passed", sa.Boolean()),
        sa.Column("qa_passed", sa.Boolean()),
        sa.CheckConstraint("cpu > 0 AND memory > 0 AND disk > 0", name="ck_versions_resources"),
        sa.CheckConstraint("number >= 1", name="ck_versions_number"),
        sa.CheckConstraint("port BETWEEN 1 AND 65535", name="ck_versions_port"),
        sa.ForeignKeyConstraint(["builder_id"], ["builders.id"], name="fk_versions_builder_id"),
        sa.PrimaryKeyConstraint("builder_id", "number", name="pk_versions"),
    )
    op.create_index("ix_versions_bundle_hash", "versions", ["bundle_hash"])
    op.create_table(
        "sandboxes",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("builder_id", sa.Text(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("run", sa.Integer(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("ip", sa.Text()),
        sa.Column("started_at", TIME),
        sa.Column("listening_at", TIME),
        sa.Column("end_cause", WORD),
        sa.Column("end_exit_code", sa.Integer()),
        sa.Column("end_at", TIME),
        sa.CheckConstraint("attempt >= 1", name="ck_sandboxes_attempt"),
        sa.CheckConstraint(
            "end_cause IS NOT NULL OR (end_exit_code IS NULL AND end_at IS NULL)", name="ck_sandboxes_end"
        ),
        sa.ForeignKeyConstraint(
            ["builder_id", "version"], ["versions.builder_id", "versions.number"], name="fk_sandboxes_version"
        ),
        sa.PrimaryKeyConstraint("id", name="pk_sandboxes"),
        sa.UniqueConstraint("builder_id", "run", "attempt", name="uq_sandboxes_builder_id_run_attempt"),
    )
    op.create_index("uq_sandboxes_open", "sandboxes", ["builder_id"], unique=True, **where("end_cause IS NULL"))
    op.create_table(
        "ledger",
        sa.Column("id", COUNTER, nullable=False),
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("builder_id", sa.Text(), nullable=False),
        sa.Column("billing", WORD, nullable=False),
        sa.Column("started_at", TIME, nullable=False),
        sa.Column("ended_at", TIME),
        sa.Column("hourly_rate", AMOUNT, nullable=False),
        sa.CheckConstraint("ended_at >= started_at", name="ck_ledger_ended_at"),
        sa.ForeignKeyConstraint(["builder_id"], ["builders.id"], name="fk_ledger_builder_id"),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name="fk_ledger_tenant_id"),
        sa.PrimaryKeyConstraint("id", name="pk_ledger"),
    )
    op.create_index("ix_ledger_builder_id_started_at", "ledger", ["builder_id", "started_at"])
    op.create_index("uq_ledger_open", "ledger", ["builder_id"], unique=True, **where("ended_at IS NULL"))
    op.create_table(
        "events",
        sa.Column("id", COUNTER, nullable=False),
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("builder_id", sa.Text(), nullable=False),
        sa.Column("time", TIME, nullable=False),
        sa.Column("type", sa.Text(), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("details", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(["builder_id"], ["builders.id"], name="fk_events_builder_id"),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name="fk_events_tenant_id"),
        sa.PrimaryKeyConstraint("id", name="pk_events"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_events_builder_id_id", "events", ["builder_id", "id"])
    op.create_table(
        "build_logs",
        sa.Column("id", COUNTER, nullable=False),
        sa.Column("builder_id", sa.Text(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("time", TIME, nullable=False),
        sa.Column("stream", WORD, nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["builder_id", "version"], ["versions.builder_id", "versions.number"], name="fk_build_logs_version"
        ),
        sa.PrimaryKeyConstraint("id", name="pk_build_logs"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_build_logs_builder_id_id", "build_logs", ["builder_id", "id"])
    op.create_table(
        "idempotency",
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("body_hash", sa.Text(), nullable=False),
        sa.Column("owner", sa.Text(), nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("builder_id", sa.Text()),
        sa.Column("status", sa.Integer()),
        sa.Column("headers", sa.JSON()),
        sa.Column("body", sa.JSON()),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name="fk_idempotency_tenant_id"),
        sa.PrimaryKeyConstraint("tenant_id", "key", name="pk_idempotency"),
    )
    op.create_index("ix_idempotency_created_at", "idempotency", ["created_at"])


def where(condition: str) -> dict[str, Any]:
    return {"sqlite_where": sa.text(condition), "postgresql_where": sa.text(condition)}
