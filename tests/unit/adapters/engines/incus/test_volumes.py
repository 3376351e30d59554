"""Volumes of several members, and while a member is away: one that only it has is not reported as gone."""

from __future__ import annotations

from typing import Any

import pytest

from builderd.adapters.engines.incus.client import error_of
from builderd.adapters.engines.incus.volumes import Volumes
from builderd.domain.database_lease import MemberAway


class ScriptedClient:
    """Lists ``stored`` (name, member); asked for one on a member that is away it fails, as Incus does after 10 s."""

    def __init__(self, *stored: tuple[str, str], away: frozenset[str]) -> None:
        self.stored, self.away = stored, away

    async def get(self, path: str, **query: str) -> Any:
        assert not query.get("recursion"), "Incus looks through all instances for each volume"
        if path.endswith("/custom"):
            return [f"/1.0{path}/{name}?project=builderd&target={member}" for name, member in self.stored]
        target = query["target"]
        assert target not in self.away
        name = path.rpartition("/")[2]
        places = [member for one, member in self.stored if one == name and target in ("", member)]
        if len(places) > 1:
            raise error_of(400, f'More than one cluster member has a volume named "{name}"', f"GET {path}")
        if not places:
            raise error_of(404, "Storage volume not found", f"GET {path}")
        return {"name": name, "location": places[0]}


def volumes(*stored: tuple[str, str], away: frozenset[str] = frozenset({"node2"})) -> Volumes:
    return Volumes(ScriptedClient(*stored, away=away), "default", lambda: away)  # type: ignore[arg-type]


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


async def test_places_are_read_from_addresses_also_without_a_cluster() -> None:
    assert await volumes(("disk-1", "node1"), ("disk%2d2", "node 3")).placed() == [
        ("disk-1", "node1"),
        ("disk-2", "node 3"),
    ]
    found = Volumes(Alone(), "default", frozenset)  # type: ignore[arg-type]
    assert await found.placed() == [("disk-1", "")]


class Alone:
    async def get(self, path: str, **query: str) -> Any:
        return [f"/1.0{path}/disk-1?project=builderd"]


async def test_layer_that_was_copied_is_found_by_its_name_alone() -> None:
    """Incus refuses the name of a volume that several members have, unless the member that is asked is one of them."""
    copied = volumes(("layer-1", "node3"), ("layer-1", "node2"), ("disk-1", "node3"), away=frozenset())
    found = await copied.find("layer-1")
    assert found
    assert found["location"] == "node2"
    there = await copied.find("layer-1", "node3")
    assert there
    assert there["location"] == "node3"
    assert await copied.find("layer-1", "node1") is None
    assert await copied.find("layer-2") is None
