"""SQLite as the store sets it up: private, in WAL mode, patient, and with its foreign keys held."""

from __future__ import annotations

import asyncio
import os
import re
import sqlite3
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event, insert, make_url, select, text
from tests.contract.store.samples import TENANT, add, add_builder, make_token, make_version
from tests.stores import open_store

from builderd.builders import claims
from builderd.core.errors import StoreUnavailable
from builderd.database import sqlite
from builderd.database.migrations import upgrade
from builderd.database.sqlite import open_sqlite
from builderd.database.types import row_of
from builderd.database.unit_of_work import Store, UnitOfWork
from builderd.tokens.store import tokens


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "builderd.db"


@pytest.fixture
async def store(path: Path) -> AsyncIterator[Store]:
    async with open_store(f"sqlite:///{path}") as opened:
        await add(opened, TENANT)
        yield opened


@pytest.fixture
def careless_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


@pytest.mark.usefixtures("careless_umask")
async def test_the_files_and_a_new_folder_belong_to_their_owner_alone(path: Path) -> None:
    async with open_store(f"sqlite:///{path}") as store:
        await add(store, TENANT)
        modes = {file.name: mode(file) for file in path.parent.iterdir()}
    assert modes == {"builderd.db": 0o600, "builderd.db-wal": 0o600, "builderd.db-shm": 0o600}
    assert mode(path.parent) == 0o700


async def test_a_file_that_others_could_read_is_closed_to_them(path: Path) -> None:
    path.parent.mkdir()
    path.touch(0o644)
    async with open_store(f"sqlite:///{path}"):
        assert mode(path) == 0o600


async def test_a_path_may_have_odd_characters(tmp_path: Path) -> None:
    path = tmp_path / "with space, % and \N{SNOWMAN}" / "b.db"
    async with open_store(f"sqlite:///{path}") as store:
        await add(store, TENANT)
    assert path.exists()


def test_connections_write_ahead_and_hold_foreign_keys(path: Path) -> None:
    database = open_sqlite(make_url(f"sqlite:///{path}"))
    with database.writing.begin() as connection:
        found = [connection.execute(text(f"PRAGMA {name}")).scalar() for name in ("journal_mode", "synchronous")]
        assert found == ["wal", 2]
        assert connection.execute(text("PRAGMA foreign_keys")).scalar() == 1
    database.writing.dispose()


async def test_only_a_durable_transaction_waits_for_the_disk(store: Store) -> None:
    def level(uow: UnitOfWork) -> int:
        found: int = uow.builders._connection.execute(text("PRAGMA synchronous")).scalar_one()
        return found

    assert [await store.write(level, durable=durable) for durable in (True, False, False, True)] == [2, 1, 1, 2]


async def test_a_writer_of_another_process_is_waited_for(store: Store, path: Path) -> None:
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    writing = asyncio.create_task(add_builder(store))
    await asyncio.sleep(0.1)
    assert not writing.done()
    other.execute("ROLLBACK")
    await writing
    other.close()


@pytest.mark.parametrize("call", ["write", "migrate"])
async def test_a_writer_of_another_process_is_not_waited_for_without_end(
    path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    monkeypatch.setattr(sqlite, "BUSY_TIMEOUT", 0.1)
    async with open_store(f"sqlite:///{path}") as store:
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreUnavailable, match="is locked: another process") as caught:
            await (add(store, TENANT) if call == "write" else store.migrate())
        assert caught.value.retry_after
        assert await store.ready(), "readers go on"
        other.close()
        await add(store, TENANT)


@pytest.mark.root
async def test_a_full_disk_is_a_fault_of_the_machine(tmp_path: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", tmp_path], check=True)
    try:
        async with open_store(f"sqlite:///{tmp_path}/builderd.db") as store:
            await add(store, TENANT)
            with suppress(OSError), (tmp_path / "filler").open("wb", buffering=0) as filler:
                while filler.write(bytes(4096)):
                    pass
            with pytest.raises(StoreUnavailable, match="disk is full"):
                await _fill(store)
            assert await store.read(lambda uow: uow.tenants.get(TENANT.id)) == TENANT
            (tmp_path / "filler").unlink()
            await add_builder(store)
    finally:
        subprocess.run(["umount", "--lazy", tmp_path], check=True)


async def _fill(store: Store) -> None:
    for _ in range(2_000):
        await add_builder(store)


async def test_a_damaged_file_is_a_fault_of_the_machine(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b"no database" * 1_000)
    store = Store(f"sqlite:///{path}")
    with pytest.raises(StoreUnavailable, match=r"damaged: look at its disk.*builderd restore"):
        await store.migrate()
    assert not await store.ready()
    await store.close()


async def test_the_switch_to_wal_waits_for_a_writer_too(path: Path) -> None:
    path.parent.mkdir()
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("CREATE TABLE restored (id)")
    other.execute("BEGIN IMMEDIATE")
    store = Store(f"sqlite:///{path}")
    migrating = asyncio.create_task(store.migrate())
    await asyncio.sleep(0.1)
    assert not migrating.done()
    other.execute("COMMIT")
    other.close()
    await migrating
    await store.close()
    assert path.read_bytes()[18:20] == b"\2\2", "its header says WAL"


def test_a_migration_that_breaks_foreign_keys_is_taken_back(path: Path) -> None:
    database = open_sqlite(make_url(f"sqlite:///{path}"))
    with database.begin_migration() as connection:
        upgrade(connection)

    with pytest.raises(RuntimeError, match="foreign keys"), database.begin_migration() as connection:
        connection.execute(insert(tokens), row_of(make_token(scopes=["write"])) | {"calls": None})
    with database.writing.begin() as connection:
        assert connection.execute(select(tokens)).all() == []
        assert connection.execute(text("PRAGMA foreign_keys")).scalar() == 1
    database.writing.dispose()


async def test_frequent_queries_use_an_index(store: Store, path: Path) -> None:
    builder = await add_builder(store)
    connection = sqlite3.connect(path)
    queries: list[tuple[object, Any]] = [(claims._DUE, {"now": "2026", "limit": 1})]
    event.listen(store._database.writing, "before_cursor_execute", lambda *call: queries.append(call[2:4]))
    await store.write(lambda uow: uow.events.of_builder(builder.id))
    for statement, values in queries:
        plan = connection.execute(f"EXPLAIN QUERY PLAN {statement}", values).fetchall()
        assert all("SCAN" not in row[-1] for row in plan)
    connection.close()


async def test_saving_leaves_keys_alone_since_sqlite_would_visit_every_row_that_points_at_them(store: Store) -> None:
    builder = await add_builder(store)
    statements: list[str] = []
    event.listen(store._database.writing, "before_cursor_execute", lambda *call: statements.append(call[2]))

    def write(uow: UnitOfWork) -> None:
        uow.builders.get(builder.id, lock=True)
        uow.builders.save(builder)
        uow.versions.save(make_version(builder.id))

    await store.write(write)
    updates = [statement.split(" WHERE ")[0] for statement in statements if statement.startswith("UPDATE")]
    assert len(updates) == 2
    for update in updates:
        assert not re.search(r"\b(id|builder_id|number)=", update)


def _damage(path: Path, table: str) -> None:
    """Overwrite the page at the root of the table."""
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        (page,) = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = ?", (table,)).fetchone()
        (size,) = connection.execute("PRAGMA page_size").fetchone()
    with path.open("r+b") as file:
        file.seek((page - 1) * size)
        file.write(b"\xff" * size)


async def test_check_finds_damage_and_names_the_remedy(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with open_store(f"sqlite:///{path}") as store:
        await add(store, TENANT)
        assert await store.find_damage() == []
    _damage(path, "tokens")
    store = Store(f"sqlite:///{path}")
    try:
        (found,) = await store.find_damage()
        assert await store.schema_differences() == [found]
    finally:
        await store.close()
    assert re.match(r"it is damaged( \(.*\))?: look at its disk .*builderd restore", found)
    assert "database check failed error=it is damaged" in caplog.text
