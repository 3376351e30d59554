"""The whole service with its records in PostgreSQL, chosen by a URL alone."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest
from tests.acceptance import scenarios
from tests.acceptance.live_service import LiveService, body, live_service
from tests.postgres import PostgresServer

pytestmark = [pytest.mark.root, pytest.mark.postgres]


@pytest.fixture(scope="module")
def database(postgres_server: PostgresServer) -> Iterator[str]:
    with postgres_server.database() as url:
        yield url


@pytest.fixture(scope="module")
def service(database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveService]:
    with live_service(tmp_path_factory.mktemp("postgresql") / "data", BUILDERD_DATABASE_URL=database) as running:
        yield running


def test_a_builders_whole_life(service: LiveService) -> None:
    scenarios.whole_life(service)


def test_apps_go_on_after_a_crash_and_are_adopted(service: LiveService) -> None:
    scenarios.absence_of_the_service(service, LiveService.kill)


def test_an_app_that_does_not_start_says_why(service: LiveService) -> None:
    scenarios.failure_to_start(service, "exits")


def test_a_creation_that_a_crash_interrupts_is_finished(service: LiveService) -> None:
    service.terminate()
    service.start("StartSandbox.done")
    asked = service.call("POST", "/builders", json=body("interrupted"), headers={"Prefer": "respond-async"})
    service.wait_dead()
    service.start()
    data = service.wait_status(asked.json()["data"]["uuid"], "running")
    assert service.visit(data).status_code == 200
    service.call("DELETE", f"/builders/{data['uuid']}")


def test_the_records_are_there_and_nowhere_else(service: LiveService, database: str) -> None:
    uuid = service.create("recorded")["uuid"]
    with psycopg.connect(database) as connection:
        assert connection.execute("SELECT name FROM builders WHERE id = %s", [uuid]).fetchall() == [("recorded",)]
    assert not list(service.data_dir.glob("*.db*"))
    service.call("DELETE", f"/builders/{uuid}")
