"""A row of the database that cannot be decoded costs its builder alone, which can still be deleted."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing

import pytest
from tests.acceptance.idling import eventually
from tests.acceptance.live_service import LiveService, live_service

pytestmark = pytest.mark.root

SMALL = {"cpu": 0.25, "memory": 0.125, "disk": 1}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveService]:
    with live_service(tmp_path_factory.mktemp("s") / "data") as service:
        yield service


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE builders SET status = 'levitating' WHERE id = ?",
        pytest.param("UPDATE versions SET env = '{' WHERE builder_id = ?", marks=pytest.mark.slow),
        pytest.param("UPDATE builders SET spare_disks = '{' WHERE id = ?", marks=pytest.mark.slow),
        pytest.param("UPDATE builders SET updated_at = 'noon' WHERE id = ?", marks=pytest.mark.slow),
        pytest.param("UPDATE sandboxes SET created_at = 'noon' WHERE builder_id = ?", marks=pytest.mark.slow),
    ],
)
def test_damaged_row_costs_its_builder_alone(service: LiveService, change: str) -> None:
    damaged, other = (service.create(name, resources=SMALL) for name in ("damaged", "other"))
    service.wait_served(damaged)
    service.wait_served(other)
    with closing(sqlite3.connect(service.data_dir / "builderd.db", isolation_level=None)) as database:
        assert database.execute(change, (damaged["uuid"],)).rowcount >= 1

    # A service that starts reads all there is.
    service.terminate()
    service.start()
    eventually(lambda: service.call("POST", f"/builders/{other['uuid']}/stop").status_code == 200)
    assert service.call("POST", f"/builders/{other['uuid']}/start").status_code == 200
    service.wait_served(other)
    listed = service.call("GET", "/builders")
    assert listed.status_code == 200, listed.text
    assert other["uuid"] in {one["uuid"] for one in listed.json()["data"]}
    for path in ("/spending-cap", "/events", "/builders?sort=name&status=running"):
        assert service.call("GET", path).status_code == 200
    assert service.visit(damaged).status_code == 200
    if "sandboxes" not in change:
        refused = service.call("GET", f"/builders/{damaged['uuid']}")
        assert (refused.status_code, refused.json()["code"]) == (503, "store_unavailable"), refused.text
        assert f"The record of builder {damaged['uuid']} in the service's database is damaged" in refused.text
        assert "delete the builder (DELETE /api/v1/builders/{uuid})" in refused.text
    assert f"record damaged builder={damaged['uuid']}" in service.log_file.read_text()

    deleted = service.call("DELETE", f"/builders/{damaged['uuid']}?purge=true")
    assert deleted.status_code == 200, deleted.text
    assert service.call("GET", f"/builders/{damaged['uuid']}").status_code == 404
    eventually(lambda: service.visit(damaged).status_code == 404)
    with closing(sqlite3.connect(service.data_dir / "builderd.db")) as database:
        found = "SELECT status FROM builders WHERE id = ?"
        eventually(lambda: database.execute(found, (damaged["uuid"],)).fetchone() == ("deleted",))
    assert service.call("DELETE", f"/builders/{other['uuid']}").status_code == 200
    assert " failed, retrying in " not in service.log_file.read_text(), "a job of all builders"
