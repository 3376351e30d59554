"""An attacker and a neighbour on one live service."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import pytest
from tests.acceptance.incus_service import running_on
from tests.acceptance.live_service import LiveService, body, live_service
from tests.incus import IncusCluster, running_cluster
from tests.patience import patience

from builderd.schemas.builder_parts import MAX_TIMEOUT

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
        """Run Python code that has no single quote."""
        assert "'" not in code
        return self.run(f"python3 -c '{code}'", timeout)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out strong isolation on Incus, which starts no virtual machines yet, and attacks on Incus's own parts."""
    left_out = [item for item in items if is_strong_on_incus(item) or is_of_incus_on_own(item)]
    items[:] = [item for item in items if item not in left_out]
    config.hook.pytest_deselected(items=left_out)


def is_strong_on_incus(item: pytest.Item) -> bool:
    params = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
    return params.get("incus") == "incus" and "strong" in (params.get("attacker"), params.get("isolation"))


def is_of_incus_on_own(item: pytest.Item) -> bool:
    params = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
    return params.get("incus") == "oci" and item.path.stem == "test_delivered_orders"


def on_incus(arena: LiveService) -> bool:
    return arena.settings.get("BUILDERD_ENGINE") == "incus"


@pytest.fixture(scope="session", params=["oci", pytest.param("incus", marks=pytest.mark.slow)])
def incus(request: pytest.FixtureRequest) -> Iterator[IncusCluster | None]:
    """The cluster on which the arena is; None if it is on this machine's own engine."""
    if request.param == "oci":
        yield None
        return
    with running_cluster(1) as cluster:
        yield cluster


def network_of(incus: IncusCluster | None) -> AbstractContextManager[None]:
    """Let this thread reach the arena and its host, as a process beside the service does."""
    return incus.network_of() if incus else nullcontext()


@pytest.fixture(scope="session")
def arena(incus: IncusCluster | None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveService]:
    data_dir = tmp_path_factory.mktemp("arena") / "data"
    with running_on(incus, data_dir) if incus else live_service(data_dir) as service:
        yield service


@pytest.fixture(autouse=True)
def in_network_of_the_arena(request: pytest.FixtureRequest) -> Iterator[None]:
    """Enter the network for one test: others of the session work in that of this machine."""
    incus = request.getfixturevalue("incus") if "incus" in request.fixturenames else None
    with network_of(incus):
        yield


@pytest.fixture(scope="session")
def neighbour(arena: LiveService, incus: IncusCluster | None) -> dict[str, Any]:
    """An innocent app of another tenant on the same machine."""
    token = arena.make_token("innocent")
    with network_of(incus):
        answer = arena.call("POST", "/builders", token=token, json=body("neighbour", env={"GREETING": "still here"}))
    assert answer.status_code == 201, answer.text
    data: dict[str, Any] = answer.json()["data"]
    return {**data, "token": token}


@pytest.fixture(params=ISOLATIONS)
def attacker(request: pytest.FixtureRequest, arena: LiveService) -> Iterator[Attacker]:
    name, resources = f"attacker-{secrets.token_hex(4)}", {"cpu": 1, "memory": 0.25, "disk": 1}
    data = arena.create(name, resources=resources, isolation=request.param)
    yield Attacker(arena, data)
    arena.call("DELETE", f"/builders/{data['uuid']}")
