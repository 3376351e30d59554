"""The whole service with its records in PostgreSQL, chosen by a URL alone."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Iterator
from pathlib import Path

import httpx
import psycopg
import pytest
from tests.acceptance import scenarios
from tests.acceptance.live_service import LiveService, body, live_service
from tests.postgres import PostgresServer

from builderd.bootstrap.database_lease import owned_store
from builderd.bootstrap.serving import Supervisor
from builderd.settings import Settings

pytestmark = [pytest.mark.root, pytest.mark.postgres]


@pytest.fixture(scope="module")
def database(postgres_server: PostgresServer) -> Iterator[str]:
    with postgres_server.database() as url:
        yield url


@pytest.fixture(scope="module")
def service(database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveService]:
    with live_service(tmp_path_factory.mktemp("postgresql") / "data", BUILDERD_DATABASE_URL=database) as running:
        yield running


@pytest.mark.slow
def test_builder_lifecycle(service: LiveService) -> None:
    scenarios.whole_life(service)


@pytest.mark.slow
def test_interrupted_creation_is_finished_after_restart(service: LiveService) -> None:
    service.terminate()
    service.start("StartSandbox.done")
    asked = service.call("POST", "/builders", json=body("interrupted"), headers={"Prefer": "respond-async"})
    service.wait_dead()
    service.start()
    data = service.wait_status(asked.json()["data"]["uuid"], "running")
    assert service.visit(data).status_code == 200
    service.call("DELETE", f"/builders/{data['uuid']}")


def test_records_are_in_postgresql_only(service: LiveService, database: str) -> None:
    uuid = service.create("recorded")["uuid"]
    with psycopg.connect(database) as connection:
        assert connection.execute("SELECT name FROM builders WHERE id = %s", [uuid]).fetchall() == [("recorded",)]
    assert not list(service.data_dir.glob("*.db*"))
    service.call("DELETE", f"/builders/{uuid}")


def test_second_service_on_the_database_is_refused(service: LiveService, database: str, tmp_path: Path) -> None:
    second = LiveService(tmp_path / "second", {"BUILDERD_DATABASE_URL": database})
    said = second.refused(4)
    assert str(service.data_dir) in said
    assert "--take-over" in said
    assert service.call("GET", "/builders").status_code == 200


def test_fenced_service_writes_nothing_and_ends(service: LiveService, database: str, tmp_path: Path) -> None:
    assert service.process is not None
    (tmp_path / "second").mkdir()
    second = Settings(data_dir=tmp_path / "second", database_url=database)
    service.process.send_signal(signal.SIGSTOP)
    try:
        with psycopg.connect(database) as connection:
            connection.execute("UPDATE database_lease SET renewed_at = renewed_at - interval '2 minutes'")
        asyncio.run(_take_over(second))
    finally:
        service.process.send_signal(signal.SIGCONT)
    with contextlib.suppress(httpx.TransportError):  # it may have ended already
        assert service.call("POST", "/builders", json=body("late")).status_code == 503
    service.wait_dead()
    assert service.process.returncode == 4
    assert str(second.data_dir) in service.log_tail()
    with psycopg.connect(database) as connection:
        assert connection.execute("SELECT 1 FROM builders WHERE name = 'late'").fetchall() == []
        connection.execute("DELETE FROM database_lease")
    service.start()
    assert service.call("GET", "/builders").status_code == 200


async def _take_over(settings: Settings) -> None:
    async with owned_store(settings, Supervisor(), take_over=True):
        pass
