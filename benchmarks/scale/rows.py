"""Copies of one stopped builder in the database: what a service that has run for long has stored."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Connection, Engine, Table, create_engine, insert, make_url, select, text, update

from builderd.backups.model import Backup, BackupKind, BackupStatus
from builderd.backups.store import backups
from builderd.builders.table import builders
from builderd.core.ids import BackupId, BuilderId, new_id, new_secret
from builderd.database.types import row_of
from builderd.events.store import events
from builderd.money.store import ledger, ledger_months, tenant_months
from builderd.sandboxes.store import sandboxes
from builderd.versions.store import versions

#: Rows that are inserted by one statement.
BATCH = 5_000
#: Disk of a copy, in GB.
TINY = 1e-6

Row = dict[str, Any]


def copy_builder(url: str, number: int) -> None:
    """Store so many copies of the one builder there is."""
    engine = open_database(url)
    with engine.begin() as connection:
        (original,) = rows_of(connection, builders)
        parts = {table: rows_of(connection, table) for table in (versions, sandboxes, ledger, ledger_months, events)}
        for start in range(0, number, BATCH):
            ids = [new_id() for _ in range(start, min(start + BATCH, number))]
            connection.execute(insert(builders), [builder_row(original, one) for one in ids])
            for table, rows in parts.items():
                copies = [part_row(table, row, one) for one in ids for row in rows]
                if copies:
                    connection.execute(insert(table), copies)
            connection.execute(insert(backups), [backup_row(original, one) for one in ids])
        add_to_tenant(connection, parts[ledger_months], number)
    if engine.dialect.name == "postgresql":
        # As autovacuum does within a minute, in the middle of the turns. Without it, plans are those for a table of
        # a few rows, and each row that is read first is marked as visible.
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text("VACUUM (ANALYZE)"))
            connection.execute(text("CHECKPOINT"))
    engine.dispose()


def add_to_tenant(connection: Connection, months: Sequence[Row], number: int) -> None:
    """Add the closed costs of the copies to those of their tenant."""
    for row in months:
        of_month = (tenant_months.c.tenant_id == row["tenant_id"], tenant_months.c.month == row["month"])
        found = connection.execute(select(tenant_months).where(*of_month)).one()
        more = {name: getattr(found, name) + number * row[name] for name in ("running", "paid")}
        connection.execute(update(tenant_months).where(*of_month).values(**more))


def open_database(url: str) -> Engine:
    parsed = make_url(url)
    driver = "sqlite+pysqlite" if parsed.get_backend_name() == "sqlite" else "postgresql+psycopg"
    return create_engine(parsed.set(drivername=driver))


def rows_of(connection: Connection, table: Table) -> Sequence[Row]:
    return [dict(zip(table.columns.keys(), row, strict=True)) for row in connection.execute(select(table))]


def builder_row(original: Row, builder_id: str) -> Row:
    own: Row = {"id": builder_id, "name": f"copy-{builder_id}", "host": f"copy-{builder_id}.localhost"}
    created = original["created_at"] - timedelta(microseconds=uuid.UUID(builder_id).int % 10**9)
    own |= {"disk": new_id(), "service_token": new_secret("bds"), "reserved_disk": TINY}
    now = datetime.now(UTC)
    # As a settled one: copies of a builder that is still claimed would all be worked on at the start.
    own |= {"claimed_by": None, "claimed_until": None, "due_at": None}
    own |= {"backup_interval_hours": 24, "backup_check_at": now + timedelta(hours=24), "drill_base_at": now}
    return {**original, **own, "created_at": created}


def backup_row(original: Row, builder_id: str) -> Row:
    """Return the row of a builder's finished backup. Nothing reads it from the repository."""
    now = datetime.now(UTC)
    names = ("tenant_id", "version")
    backup = Backup(
        id=BackupId(new_id()),
        builder_id=BuilderId(builder_id),
        builder_name="copy",
        kind=BackupKind.SCHEDULED,
        status=BackupStatus.DONE,
        actor="system",
        owner="none",
        created_at=now,
        finished_at=now,
        snapshot="0" * 64,
        **{name: original[name] for name in names},
    )
    return row_of(backup)


def part_row(table: Table, row: Row, builder_id: str) -> Row:
    """Return a row of another table for a copy. Its disk counts next to nothing of the machine's capacity."""
    copied = {**row, "builder_id": builder_id}
    if table in (ledger, events):
        del copied["id"]
    elif table is sandboxes:
        copied["id"] = new_id()
    elif table is versions:
        copied["disk"] = TINY
    return copied
