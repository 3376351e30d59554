"""Use of a sandbox that ends while it is read."""

from __future__ import annotations

from typing import Any

import pytest
from tests.unit.adapters.engines.incus.scripted_incus import ScriptedIncus, machine_on

from builderd.adapters.engines.incus.errors import IncusError, error_of
from builderd.adapters.engines.incus.usage import Usage
from builderd.domain.ids import SandboxId

SANDBOX = SandboxId("1")


class Ending(ScriptedIncus):
    """Refuses the state of the instance with these words."""

    def __init__(self, status: int, words: str) -> None:
        super().__init__()
        self.answer = (status, words)
        self.has_instance("s-1", builder="b", disk="d")

    async def get(self, path: str, **query: str) -> Any:
        if path == "/instances/s-1/state":
            raise error_of(*self.answer, f"GET {path}")
        return await super().get(path, **query)


def usage_on(incus: ScriptedIncus) -> Usage:
    machine = machine_on(incus)
    machine.sandboxes._ordered.add("s-1")
    return machine.usage


@pytest.mark.parametrize(("status", "words"), [(500, "Invalid PID '\ufffd'"), (404, "Instance not found")])
async def test_sandbox_that_has_just_ended_has_no_usage(status: int, words: str) -> None:
    usage = usage_on(Ending(status, words))
    assert await usage.usage(SANDBOX) is None
    assert await usage.effort(SANDBOX) is None


async def test_refused_state_is_an_error() -> None:
    usage = usage_on(Ending(500, "Broken"))
    with pytest.raises(IncusError, match="Broken"):
        await usage.effort(SANDBOX)
