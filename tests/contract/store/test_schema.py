"""The store says how the schema of its database differs from the one that the code works on."""

from __future__ import annotations

import asyncio

import pytest
from sqlalchemy import text
from tests.stores import MEMORY

from builderd.store import Store
from builderd.store.migrations import revisions
from builderd.store.tables import metadata

HEAD = revisions()[-1]


async def change(store: Store, *statements: str) -> None:
    def execute() -> None:
        with store._database.writing.begin() as connection:
            for statement in statements:
                connection.execute(text(statement))

    await asyncio.get_running_loop().run_in_executor(store._writers, execute)


async def test_current_schema_has_no_differences(store: Store) -> None:
    assert await store.schema_differences() == []


@pytest.mark.parametrize(
    ("statement", "fault"),
    [
        ("DROP TABLE qa_screenshots", "the table qa_screenshots is missing"),
        ("ALTER TABLE builders DROP COLUMN member", "the column builders.member is missing"),
        ("UPDATE alembic_version SET version_num = '0001'", f"revision 0001, this program needs {HEAD} (restart"),
        ("UPDATE alembic_version SET version_num = '9999'", "revision 9999, this program needs"),
        ("DROP TABLE alembic_version", "revision none, this program needs"),
    ],
)
async def test_missing_tables_and_columns_are_named(store: Store, statement: str, fault: str) -> None:
    await change(store, statement)
    (only,) = await store.schema_differences()
    assert fault in only


async def test_additional_tables_are_no_difference(store: Store) -> None:
    await change(store, "ALTER TABLE tenants ADD COLUMN colour TEXT", "CREATE TABLE notes (id INTEGER)")
    assert await store.schema_differences() == []


async def test_empty_database_names_a_few_differences() -> None:
    store = Store(MEMORY)
    found = await store.schema_differences()
    await store.close()
    assert "revision none" in found[0]
    assert len(found) == 11
    assert found[-1] == f"and {len(metadata.tables) + 1 - 10} more"


async def test_missing_database_is_reported_as_unreadable() -> None:
    store = Store("postgresql://me@127.0.0.1:1/builderd")
    assert await store.schema_differences() == ["its schema cannot be read: see the service's log"]
    await store.close()
