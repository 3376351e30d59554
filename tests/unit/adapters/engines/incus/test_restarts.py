"""A sandbox that is started another time replaces the instance that was kept for its log."""

from __future__ import annotations

import pytest
from tests.unit.adapters.engines.incus.scripted_incus import ScriptedIncus, machine_on

from builderd.adapters.engines.incus import network
from builderd.adapters.engines.incus.client import IncusError
from builderd.domain.ids import BuilderId, DiskId, SandboxId
from builderd.domain.resources import Resources
from builderd.domain.sandboxes import SandboxSpec
from builderd.domain.versions import Isolation

SPEC = SandboxSpec(
    SandboxId("1"), BuilderId("b"), DiskId("d"), "h", "python3 main.py", 8000, {}, Resources(), Isolation.STANDARD
)


async def test_removed_sandbox_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    async def nothing(*_: str) -> str:
        return ""

    monkeypatch.setattr(network, "_ip", nothing)
    incus = ScriptedIncus()
    incus.has_volume("disk-d")
    incus.has_instance("s-1", status="Stopped", builder="b", removed="1", end="ended")
    with pytest.raises(IncusError, match="Nothing is started"):
        await machine_on(incus).sandboxes.start(SPEC)
    config = incus.instances["s-1"]["config"]
    assert "user.builderd.removed" not in config
    assert config["user.builderd.ip"]
