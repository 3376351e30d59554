"""The migrations make exactly the tables that the code works on, and the store says where a database differs."""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from pprint import pformat
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from sqlalchemy import Connection, Engine, create_engine, inspect, text
from tests.contract.store.samples import TENANT, add, add_builder
from tests.postgres import PostgresServer
from tests.stores import MEMORY, open_store

from builderd.core.errors import InvalidState
from builderd.database import migrations
from builderd.database.columns import metadata
from builderd.database.unit_of_work import Store

ROOT = Path(__file__).parents[3]
VERSIONS = Path(migrations.__file__).with_name("versions")
#: The sha256 of each migration that has landed, with its SQL.
LANDED = {
    "0047_baseline.postgresql.sql": "685a1852d1934280fd1c0540c540089301441251339321de79abd5bc0023fa5e",
    "0047_baseline.py": "3e2aef392a0c2416063a92ce4c9b74ccfe8f7a21a3d9c8723af6cbb68c6886de",
    "0047_baseline.sqlite.sql": "54bccc8fa7a9c80b96caccbb90a05cb5573896ad700a5dd25a047f5d4dcb5021",
    "0048_live_totals.py": "db12513966c526b689bf1204e29c5559dbe3a6ad9a8d53d109ec99e59ddcac15",
    "0049_backup_digest.py": "893eb4d246cb8c6276f13012f5abbba396838c5b0006723b5eff35fcffc57b09",
    "0050_adopted_port.py": "7a984d8eee06a272b55686ef7cb5c96ba5e2de28ae20a0cf990b7342d092a9a6",
    "0051_detected.py": "1b11f42e6fc520cba1b808710aedc74ebe755e50007a63dd6298012cdf815547",
    "0052_processes.py": "5e2065f711563f4e81bd74608a78104681d52a60208518e2a28555f076ec7d1b",
    "0053_packages.py": "d1e5127a2c8e866dd2ebd275b176841a2a11d31494f12cf5b053744c28a76f97",
}
HEAD = migrations.revisions()[-1]
#: A later migration, which rebuilds a table on SQLite.
NEXT = """
import sqlalchemy as sa
from alembic import op

revision, down_revision = "9000", {head!r}

def upgrade():
    with op.batch_alter_table("tenants") as table:
        table.add_column(sa.Column("colour", sa.Text, nullable=False, server_default="red"))
        table.create_check_constraint("colour", "colour <> ''")
"""
MIGRATE = """
import asyncio, sys
from builderd.database import unit_of_work
print(unit_of_work.__file__)
asyncio.run(unit_of_work.Store(sys.argv[1]).migrate())
"""
INDEXES = {
    "sqlite": "SELECT name, sql FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL ORDER BY name",
    "postgresql": "SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = 'public' ORDER BY indexname",
}


# The index on an expression, which SQLAlchemy does not read from SQLite, is compared as the database has it.
pytestmark = pytest.mark.filterwarnings("ignore:.*expression-based index")


@pytest.fixture
async def migrated(shared_url: str) -> Engine:
    async with open_store(shared_url):
        return create_engine(_with_driver(shared_url))


@pytest.fixture
def created(migrated: Engine, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    """Another database of the same kind, created from the tables of the code."""
    if migrated.dialect.name == "sqlite":
        engine = create_engine(f"sqlite:///{tmp_path}/created.db")
        metadata.create_all(engine)
        yield engine
        engine.dispose()
        return
    server: PostgresServer = request.getfixturevalue("postgres_server")
    with server.database() as url:
        engine = create_engine(_with_driver(url))
        metadata.create_all(engine)
        yield engine
        engine.dispose()


def _with_driver(url: str) -> str:
    return url.replace("postgresql://", "postgresql+psycopg://")


def describe(connection: Connection) -> dict[str, Any]:
    """Tables with their columns and constraints, and the indexes with their conditions, in the database's words."""
    inspector = inspect(connection)
    names = set(inspector.get_table_names()) - {"alembic_version"}
    rows = connection.execute(text(INDEXES[connection.dialect.name])).all()
    indexes = {name: definition for name, definition in rows if name != "alembic_version_pkc"}
    return {"tables": {name: _describe_table(inspector, name) for name in names}, "indexes": indexes}


def _describe_table(inspector: Any, table: str) -> dict[str, Any]:
    return {
        "columns": {one["name"]: {**one, "type": str(one["type"])} for one in inspector.get_columns(table)},
        "primary key": inspector.get_pk_constraint(table),
        "foreign keys": sorted(inspector.get_foreign_keys(table), key=lambda key: str(key["name"])),
        "checks": sorted(inspector.get_check_constraints(table), key=lambda check: str(check["name"])),
        "uniques": sorted(inspector.get_unique_constraints(table), key=lambda unique: str(unique["name"])),
    }


def test_migrations_match_the_tables(migrated: Engine) -> None:
    with migrated.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        assert compare_metadata(context, metadata) == []
    migrated.dispose()


def test_migrations_match_checks_conditions_and_collations(migrated: Engine, created: Engine) -> None:
    with migrated.connect() as left, created.connect() as right:
        assert pformat(describe(left)).splitlines() == pformat(describe(right)).splitlines()
    migrated.dispose()


def test_installed_wheel_contains_the_migrations(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    argv = [sys.executable, "-c", MIGRATE, f"sqlite:///{tmp_path}/data/builderd.db"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    done = subprocess.run(argv, cwd=tmp_path, env=environment, check=True, capture_output=True, text=True)
    assert done.stdout.startswith(str(tmp_path / "site"))
    engine = create_engine(f"sqlite:///{tmp_path}/data/builderd.db")
    assert "builders" in inspect(engine).get_table_names()
    engine.dispose()


def test_landed_migrations_are_unchanged() -> None:
    """Databases went through a migration as it was, so a change is a migration of its own. Comments count."""
    present = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in VERSIONS.iterdir() if path.is_file()
    }
    assert present == LANDED


async def test_migration_keeps_the_rows(shared_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    async with open_store(shared_url) as store:
        await add(store, TENANT)
        builder = await add_builder(store)
    folder = tmp_path / "migrations"
    shutil.copytree(VERSIONS.parent, folder)
    (folder / "versions/9000_colours.py").write_text(NEXT.format(head=HEAD))
    monkeypatch.setattr(migrations, "_config", lambda **attributes: _config(folder, attributes))
    monkeypatch.setattr(migrations, "revisions", lambda: (HEAD, "9000"))
    async with open_store(shared_url) as store:
        await store.migrate()
        assert await store.is_migrated()
        assert await store.read(lambda uow: uow.builders.get(builder.id)) == builder
        assert await change(store, "SELECT colour FROM tenants") == [("red",)]
    monkeypatch.undo()
    store = Store(shared_url)
    assert await store.schema_conflict() == "the database has the schema 9000, which a newer builderd made"
    with pytest.raises(InvalidState, match="schema 9000, which a newer builderd made: use that one"):
        await store.migrate()
    await store.close()


def _config(folder: Path, attributes: Any) -> Config:
    config = Config(attributes=attributes)
    config.set_main_option("script_location", str(folder))
    return config


async def test_database_from_before_the_first_release_is_refused(store: Store) -> None:
    await change(store, "UPDATE alembic_version SET version_num = '0046'")
    with pytest.raises(InvalidState, match=r"schema 0046 of a builderd from before 1\.0, which is not upgraded"):
        await store.migrate()
    with pytest.raises(InvalidState, match="not upgraded"):
        await store.read(lambda uow: uow.database_lease.get())


async def change(store: Store, *statements: str) -> list[Any]:
    """Execute the statements, and return the rows of the last one."""

    def execute() -> list[Any]:
        with store._database.writing.begin() as connection:
            done = [connection.execute(text(statement)) for statement in statements]
            return list(done[-1]) if done[-1].returns_rows else []

    return await asyncio.get_running_loop().run_in_executor(store._writers, execute)


async def test_current_schema_has_no_differences(store: Store) -> None:
    assert await store.schema_differences() == []
    await change(store, "ALTER TABLE tenants ADD COLUMN colour TEXT", "CREATE TABLE notes (id INTEGER)")
    assert await store.schema_differences() == []


@pytest.mark.parametrize(
    ("statement", "fault"),
    [
        ("DROP TABLE qa_screenshots", "the table qa_screenshots is missing"),
        ("ALTER TABLE builders DROP COLUMN member", "the column builders.member is missing"),
        ("UPDATE alembic_version SET version_num = '9999'", f"revision 9999, this program needs {HEAD} (another"),
        ("DROP TABLE alembic_version", f"revision none, this program needs {HEAD} (restart"),
    ],
)
async def test_missing_tables_and_columns_are_named(store: Store, statement: str, fault: str) -> None:
    await change(store, statement)
    (only,) = await store.schema_differences()
    assert fault in only


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
