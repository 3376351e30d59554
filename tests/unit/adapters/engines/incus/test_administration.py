"""The cluster for its operator: one member that does not answer hides no other."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from builderd.adapters.engines.incus.client import IncusNotFound, IncusOptions, unreachable
from builderd.adapters.engines.incus.provider import Administration
from builderd.domain.errors import EngineUnavailable, InvalidState

SPACE = {"total": 10, "used": 5}
STATE = {
    "sysinfo": {"free_ram": 1, "buffered_ram": 1, "total_ram": 4},
    "storage_pools": {"default": {"space": SPACE}},
}


class Client:
    """Incus with two members; node2 was just killed, and Incus has not seen it."""

    async def get(self, path: str, **query: str) -> Any:
        if path == "/cluster/members/node2/state" or query.get("target") == "node2":
            raise unreachable("node2", OSError("connection refused"))
        if path == "/cluster/members":
            return [
                {"server_name": name, "url": f"https://10.0.0.{name[-1]}:8443", "status": "Online"}
                for name in ("node1", "node2")
            ]
        if path == "/cluster/members/node1":
            empty: dict[str, Any] = {"roles": [], "failure_domain": "", "description": "", "groups": []}
            return {"status": "Online", **empty}
        if path.endswith("/state"):
            return STATE
        if path.endswith("/volumes/custom"):
            return [{"name": "disk-1", "location": "node1", "config": {}}]
        raise IncusNotFound(404, path)

    async def call(self, *_: object, **__: object) -> None:
        await asyncio.sleep(0)


@pytest.fixture
def administration(monkeypatch: pytest.MonkeyPatch) -> Administration:
    monkeypatch.setattr("builderd.adapters.engines.incus.provider.IncusClient", lambda _: Client())
    return Administration(IncusOptions())


async def test_member_that_was_just_killed_is_shown_beside_the_others(administration: Administration) -> None:
    one, two = await administration.members()
    assert (one.status, one.pool_total is None) == ("Online", False)
    assert (two.status, two.pool_total) == ("Online, does not answer", None)


async def test_evacuation_that_is_not_waited_for_names_the_disks_that_are_left(administration: Administration) -> None:
    shown: list[Sequence[str]] = []
    with pytest.raises(InvalidState, match=r"1 disks are left on node1 \(disk-1\)"):
        await administration.evacuate("node1", shown.append, 0)
    assert shown == [["disk-1"]]


def test_invitation_without_a_token_is_an_error_in_words(
    administration: Administration, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(administration, "_incus", lambda *_: "\n")
    with pytest.raises(EngineUnavailable, match="printed no token"):
        administration.invite("node3")
