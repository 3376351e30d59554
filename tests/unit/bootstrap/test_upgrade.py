"""A data directory that an old builderd has left is the new one's, with all that was in it, on both databases."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tests.postgres import PostgresServer
from tests.upgrades import old_schema

from builderd.bootstrap.database_lease import owned_store
from builderd.bootstrap.keys import make_vault
from builderd.bootstrap.supervisor import Supervisor
from builderd.domain.builders import Status
from builderd.domain.ids import BuilderId
from builderd.services import credentials, tokens
from builderd.settings import Settings
from builderd.store import UnitOfWork

#: A revision of which a service has left ``tests/upgrades/<revision>``.
STORED = "0012"
KNOWN: dict[str, Any] = json.loads((old_schema.STORED / STORED / "known.json").read_text())
UP, STOPPED = BuilderId(KNOWN["up"]), BuilderId(KNOWN["stopped"])


@pytest.fixture
def left(tmp_path: Path) -> Settings:
    """The old data directory, with its database in it."""
    data_dir = tmp_path / "data"
    shutil.copytree(old_schema.STORED / STORED, data_dir, ignore=shutil.ignore_patterns("*.sql", "*.json"))
    (data_dir / "vault.key").chmod(0o600)  # git keeps no such modes
    old_schema.load(STORED, data_dir / "builderd.db")
    return Settings(data_dir=data_dir)


def test_on_sqlite_everything_is_there(left: Settings) -> None:
    asyncio.run(_check(left))


@pytest.mark.postgres
def test_on_postgresql_everything_is_there(left: Settings, postgres_server: PostgresServer) -> None:
    with postgres_server.database() as url:
        old_schema.copy(left.data_dir / "builderd.db", url, STORED)
        asyncio.run(_check(left.model_copy(update={"database_url": url})))


async def _check(settings: Settings) -> None:
    safe = make_vault(settings)

    def look(uow: UnitOfWork) -> None:
        up, stopped = uow.builders.get(UP), uow.builders.get(STOPPED)
        assert up is not None
        assert stopped is not None
        assert (up.status, up.version, up.member) == (Status.RUNNING, 2, owned.instance.member)
        assert stopped.status is Status.STOPPED
        token = tokens.authenticate(uow, KNOWN["token"], up.created_at)
        assert token.tenant_id == up.tenant_id
        opened = credentials.open_all(uow, safe, up.tenant_id, ["mail"])
        assert credentials.as_env(opened) == {"API_KEY": KNOWN["canary"]}
        current = uow.versions.get(UP, 2)
        assert current is not None
        assert current.settings.env == {"GREETING": "from an old database"}
        assert (settings.data_dir / "bundles" / f"{current.bundle_hash}.tar").is_file()
        assert [one.version for one in uow.backups.of_builder(UP)] == [2]
        running = uow.sandboxes.open_of(UP)
        assert running is not None
        assert running.version == 2
        assert uow.ledger.current(UP) is not None
        assert len(uow.events.of_builder(UP)) > 10
        assert len(uow.builders.of_tenant(up.tenant_id, deleted=True)) == 3

    async with owned_store(settings, Supervisor(), take_over=False) as owned:
        assert await owned.store.schema_differences() == []
        await owned.store.read(look)
