"""QA reports and their screenshots."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"

TIME = sa.DateTime(timezone=True)
OF_VERSION = ["builder_id", "version"], ["versions.builder_id", "versions.number"]


def upgrade() -> None:
    op.create_table(
        "qa_reports",
        sa.Column("builder_id", sa.Text(), nullable=False),
        sa.Column("version", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("status", sa.String(32), nullable=False),
        sa.Column("gate", sa.JSON(), nullable=False),
        sa.Column("gate_at", TIME),
        sa.Column("checks", sa.JSON(), nullable=False),
        sa.Column("screenshots", sa.JSON(), nullable=False),
        sa.Column("note", sa.Text(), nullable=False),
        sa.Column("requested_by", sa.Text(), nullable=False),
        sa.Column("requested_at", TIME),
        sa.Column("started_at", TIME),
        sa.Column("finished_at", TIME),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("owner", sa.Text(), nullable=False),
        sa.Column("copy_disk", sa.Text()),
        sa.ForeignKeyConstraint(*OF_VERSION, name="fk_qa_reports_version"),
        sa.PrimaryKeyConstraint("builder_id", "version", name="pk_qa_reports"),
    )
    op.create_table(
        "qa_screenshots",
        sa.Column("builder_id", sa.Text(), nullable=False),
        sa.Column("version", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("width", sa.Integer(), nullable=False),
        sa.Column("height", sa.Integer(), nullable=False),
        sa.Column("png", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(*OF_VERSION, name="fk_qa_screenshots_version"),
        sa.PrimaryKeyConstraint("builder_id", "version", "name", name="pk_qa_screenshots"),
    )
