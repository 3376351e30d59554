"""The migrations make exactly the tables that the code works on."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from pprint import pformat
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, Engine, create_engine, inspect, text
from tests.postgres import PostgresServer
from tests.stores import open_store

from builderd.store.tables import metadata

ROOT = Path(__file__).parents[3]
MIGRATE = """
import asyncio, sys
from builderd.store import store
print(store.__file__)
asyncio.run(store.Store(sys.argv[1]).migrate())
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
    """Another database of the same kind, created from the package ``tables``."""
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
        "columns": [{**column, "type": str(column["type"])} for column in inspector.get_columns(table)],
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
