"""The host of a service has no byte left: what runs goes on, reads are answered, and deletions free space."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from tests.acceptance.idling import eventually
from tests.acceptance.live_service import PLAIN, LiveService, body, live_service
from tests.small_disk import fill, small_disk

pytestmark = pytest.mark.root

GB = 1_000_000_000


@pytest.fixture
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    # A short name: a Unix socket's path must be.
    with small_disk(tmp_path_factory.mktemp("h"), 11 * GB) as host:
        yield host


@pytest.fixture
def service(host: Path) -> Iterator[LiveService]:
    with live_service(host / "data", BUILDERD_STORE__SIZE="8") as service:
        yield service


def is_ready(service: LiveService) -> bool:
    return httpx.get(f"{service.url}/readyz", timeout=20, **PLAIN).status_code == 200


def test_builder_is_stopped_and_another_deleted_on_a_full_host(host: Path, service: LiveService) -> None:
    small = {"cpu": 0.25, "memory": 0.125, "disk": 1}
    served, stopped, deleted = (service.create(name, resources=small) for name in ("served", "stopped", "deleted"))
    service.wait_served(served)
    fill(host, 800_000_000)  # less than store.floor
    backup = service.call("POST", f"/builders/{served['uuid']}/backups")
    assert (backup.status_code, backup.json()["code"]) == (503, "no_capacity"), backup.text
    assert f"The host's file system of {host}/data/store.img is too full" in backup.json()["message"]
    assert "Delete" not in backup.json()["message"]
    fill(host, 150_000_000)
    eventually(lambda: not is_ready(service))
    filler = fill(host)

    refused = service.call("POST", "/builders", json=body("late", resources=small))
    assert (refused.status_code, refused.json()["code"]) == (503, "no_capacity"), refused.text
    assert refused.headers["retry-after"]
    assert service.call("GET", "/builders").json()["meta"]["total"] == 3
    command = service.call("POST", f"/builders/{served['uuid']}/exec", json={"command": "echo here"})
    assert command.json()["data"]["output"] == "here\n", command.text
    for answer in (
        service.call("POST", f"/builders/{stopped['uuid']}/stop"),
        service.call("DELETE", f"/builders/{deleted['uuid']}?purge=true"),
    ):
        assert answer.status_code == 200, answer.text
    assert service.call("GET", f"/builders/{deleted['uuid']}").status_code == 404
    assert service.visit(served).status_code == 200

    filler.unlink()
    eventually(lambda: is_ready(service))
    assert service.call("POST", f"/builders/{stopped['uuid']}/start").status_code == 200
