"""Volumes while a member is away: one that only it has is not reported as gone."""

from __future__ import annotations

from typing import Any

import pytest

from builderd.adapters.engines.incus.volumes import Volumes
from builderd.domain.members import MemberAway


class ScriptedClient:
    """Lists ``stored`` (name, member); asked for one on node2 it fails, as Incus does after ten seconds."""

    def __init__(self, *stored: tuple[str, str]) -> None:
        self.stored = stored

    async def get(self, path: str, **query: str) -> Any:
        if query.get("recursion"):
            name = query["filter"].removeprefix("name eq ")
            return [{"name": one, "location": member} for one, member in self.stored if one == name]
        assert query["target"] != "node2"
        return {"name": path.rpartition("/")[2], "location": query["target"]}


def volumes(*stored: tuple[str, str]) -> Volumes:
    return Volumes(ScriptedClient(*stored), "default", lambda: frozenset({"node2"}))  # type: ignore[arg-type]


async def test_volume_of_a_member_that_is_away_is_not_gone() -> None:
    with pytest.raises(MemberAway, match="node2"):
        await volumes(("disk-1", "node2")).find("disk-1")
    with pytest.raises(MemberAway, match="node2"):
        await volumes(("layer-1", "node1"), ("layer-1", "node2")).find("layer-1", "node2")
    assert await volumes(("disk-1", "node2")).find("disk-2") is None


async def test_volume_of_several_members_is_taken_from_one_that_answers() -> None:
    found = await volumes(("layer-1", "node2"), ("layer-1", "node3")).find("layer-1")
    assert found
    assert found["location"] == "node3"
    assert await volumes(("layer-1", "node2"), ("layer-1", "node3")).places("layer-1") == ["node2", "node3"]
