"""PostgreSQL reads no more for a page than the page's rows, with thousands of builders."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import Connection, Table, event, text
from tests.contract.store.samples import TENANT, add, add_builder, make_segment
from tests.stores import open_store

from builderd.domain.backups import Backup, BackupKind, BackupStatus
from builderd.domain.ids import BackupId, new_id
from builderd.store import Store, UnitOfWork
from builderd.store.builders import BuilderQuery
from builderd.store.tables import backups, builders, ledger, versions

NOW = datetime(2026, 5, 1, tzinfo=UTC)
ROWS = 3_000
PAGES: dict[str, Callable[[UnitOfWork], object]] = {
    "list for people": lambda uow: uow.builder_lists.shown(TENANT.id, BuilderQuery(per_page=100), NOW),
    "costs": lambda uow: uow.builder_lists.costs(TENANT.id, 1, 100, NOW),
}


@pytest.fixture
async def store(postgres_url: str) -> AsyncIterator[Store]:
    async with open_store(postgres_url) as opened:
        await add(opened, TENANT)
        builder = await add_builder(opened)
        await add(opened, make_segment(builder.id))
        made = (BackupId(new_id()), TENANT.id, builder.id, builder.name, 1, BackupKind.SCHEDULED, BackupStatus.FAILED)
        await opened.write(lambda uow: uow.backups.add(Backup(*made, "system", "me", NOW, error="no space")))
        with opened._database.writing.begin() as connection:
            for table in (builders, versions, ledger, backups):
                _copy(connection, table)
        yield opened


def _copy(connection: Connection, table: Table) -> None:
    """Copy the table's one row for as many builders."""
    own = ("id", "name", "host", "service_token", "disk") if table is builders else ("id", "builder_id")
    names = [column.name for column in table.c if not (table is ledger and column.name == "id")]
    values = ", ".join("'copy-' || nth" if name in own else name for name in names)
    copied = f"SELECT {values} FROM {table}, generate_series(1, {ROWS}) AS copies (nth)"
    connection.execute(text(f"INSERT INTO {table} ({', '.join(names)}) {copied}"))


@pytest.mark.postgres
async def test_page_is_joined_with_its_own_rows_alone(store: Store) -> None:
    with store._database.writing.begin() as connection:
        connection.execute(text("ANALYZE"))
        seen: list[tuple[str, Any]] = []
        event.listen(connection, "before_cursor_execute", lambda *args: seen.append((args[2], args[3])))
        for name, call in PAGES.items():
            assert call(UnitOfWork(connection, writes=False)), name
        for statement, values in seen[: len(PAGES)]:
            plan = "\n".join(row[0] for row in connection.exec_driver_sql(f"EXPLAIN {statement}", values))
            for table in (versions, ledger):
                assert f" on {table.name} " in plan
                assert f"Seq Scan on {table.name} " not in plan, plan
