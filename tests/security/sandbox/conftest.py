"""An attacker and a neighbour on one live service."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from tests.acceptance.incus_service import service_on
from tests.acceptance.live_service import LiveService, body, live_service
from tests.incus import running_cluster
from tests.patience import patience

from builderd.schemas.v1.executions import MAX_TIMEOUT

#: That a command may take which is expected to end; the API allows no more than its own limit.
COMMAND_SECONDS = min(round(patience(60)), MAX_TIMEOUT)

#: Of an attacker; gVisor's own kernel takes its time.
ISOLATIONS = ("standard", pytest.param("strong", marks=pytest.mark.slow))


@dataclass(frozen=True)
class Attacker:
    """A builder that plays the attacker through exec; ``run`` gives (exit code, output)."""

    service: LiveService
    data: dict[str, Any]

    def run(self, command: str, timeout: int = COMMAND_SECONDS) -> tuple[int, str]:
        request = {"command": command, "timeout": timeout}
        answer = self.service.call("POST", f"/builders/{self.data['uuid']}/exec", json=request)
        assert answer.status_code == 200, answer.text
        result = answer.json()["data"]
        return result["exit_code"], result["output"]

    def python(self, code: str, timeout: int = COMMAND_SECONDS) -> tuple[int, str]:
        """Run Python code that holds no single quote."""
        assert "'" not in code
        return self.run(f"python3 -c '{code}'", timeout)


def on_incus(arena: LiveService) -> bool:
    return arena.settings.get("BUILDERD_ENGINE") == "incus"


@pytest.fixture(scope="session", params=["oci", pytest.param("incus", marks=pytest.mark.slow)])
def arena(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveService]:
    data_dir = tmp_path_factory.mktemp("arena") / "data"
    if request.param == "oci":
        with live_service(data_dir) as service:
            yield service
        return
    with running_cluster(1) as cluster, service_on(cluster, data_dir) as service:
        yield service


@pytest.fixture(scope="session")
def neighbour(arena: LiveService) -> dict[str, Any]:
    """An innocent app of another tenant on the same machine."""
    token = arena.make_token("innocent")
    answer = arena.call("POST", "/builders", token=token, json=body("neighbour", env={"GREETING": "still here"}))
    assert answer.status_code == 201, answer.text
    data: dict[str, Any] = answer.json()["data"]
    return {**data, "token": token}


@pytest.fixture(params=ISOLATIONS)
def attacker(request: pytest.FixtureRequest, arena: LiveService) -> Iterator[Attacker]:
    if request.param == "strong" and on_incus(arena):
        pytest.skip("the engine incus starts no virtual machines yet")
    name, resources = f"attacker-{secrets.token_hex(4)}", {"cpu": 1, "memory": 0.25, "disk": 1}
    data = arena.create(name, resources=resources, isolation=request.param)
    yield Attacker(arena, data)
    arena.call("DELETE", f"/builders/{data['uuid']}")
