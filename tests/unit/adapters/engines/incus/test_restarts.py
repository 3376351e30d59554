"""A sandbox that is started another time replaces the instance that was kept for its log; others ask for nothing."""

from __future__ import annotations

from typing import Any

import pytest
from tests.unit.adapters.engines.incus.scripted_incus import ScriptedIncus, machine_on

from builderd.adapters.engines.incus import network
from builderd.adapters.engines.incus.client import error_of
from builderd.domain.errors import InvalidState
from builderd.domain.ids import BuilderId, DiskId, SandboxId
from builderd.domain.resources import Resources
from builderd.domain.sandboxes import SandboxSpec
from builderd.domain.versions import Isolation

SPEC = SandboxSpec(
    SandboxId("1"), BuilderId("b"), DiskId("d"), "h", "python3 main.py", 8000, {}, Resources(), Isolation.STANDARD
)


class StrictIncus(ScriptedIncus):
    """Refuses a second instance of a name; ``asked`` are instances that it was asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []

    async def get(self, path: str, **query: str) -> Any:
        if path.startswith("/instances/"):
            self.asked.append(path)
        return await super().get(path, **query)

    async def call(self, method: str, path: str, body: Any = None, **query: str) -> Any:
        if (method, path) == ("POST", "/instances") and body["name"] in self.instances:
            raise error_of(409, f'Failed creating instance record: Instance "{body["name"]}" already exists', path)
        return await super().call(method, path, body, **query)


@pytest.fixture(autouse=True)
def ip(monkeypatch: pytest.MonkeyPatch) -> None:
    async def nothing(*_: str) -> str:
        return ""

    monkeypatch.setattr(network, "_ip", nothing)


async def make(incus: ScriptedIncus) -> None:
    sandboxes = machine_on(incus).sandboxes
    await sandboxes._make(SPEC, await sandboxes._instance(SPEC, "node2"), "node2")


async def test_removed_sandbox_is_replaced() -> None:
    incus = StrictIncus()
    incus.has_instance("s-1", status="Stopped", builder="b", removed="1", end="ended")
    await make(incus)
    config = incus.instances["s-1"]["config"]
    assert "user.builderd.removed" not in config
    assert config["user.builderd.ip"]


async def test_sandbox_that_is_being_started_is_refused_and_stays() -> None:
    incus = StrictIncus()
    incus.has_instance("s-1", builder="b", ip="10.99.0.20")
    with pytest.raises(InvalidState, match="being started"):
        await make(incus)
    assert incus.instances["s-1"]["config"]["user.builderd.ip"] == "10.99.0.20"


async def test_first_start_asks_for_no_instance() -> None:
    incus = StrictIncus()
    await make(incus)
    assert incus.asked == []
