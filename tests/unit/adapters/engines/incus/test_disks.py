"""Disks while members are away: written off until their member answers again, and no longer."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import pytest

from builderd.adapters.engines.incus.disks import Disks
from builderd.domain.database_lease import MemberAway
from builderd.domain.ids import DiskId

ONE, TWO = DiskId("one"), DiskId("two")


class ScriptedVolumes:
    """Volumes by name with their members; those of members that are ``away`` cannot be read."""

    def __init__(self, **members: str) -> None:
        self.members = {f"disk-{disk}": member for disk, member in members.items()}
        self.away: Collection[str] = ()
        self.config = {"user.builderd.size": "1"}

    async def find(self, name: str, member: str = "") -> dict[str, Any] | None:
        if name not in self.members:
            return None
        if self.members[name] in self.away:
            raise MemberAway(self.members[name])
        return self._volume(name)

    async def all(self) -> Sequence[dict[str, Any]]:
        return [self._volume(name) for name in self.members]

    async def placed(self) -> Sequence[tuple[str, str]]:
        return list(self.members.items())

    def _volume(self, name: str) -> dict[str, Any]:
        return {"name": name, "location": self.members[name], "config": self.config}


def disks_of(volumes: ScriptedVolumes) -> Disks:
    return Disks(volumes, lambda _: None, lambda: None)  # type: ignore[arg-type, return-value]


async def test_disk_that_was_read_again_is_not_gone_when_its_member_restarts() -> None:
    volumes = ScriptedVolumes(one="node1")
    disks = disks_of(volumes)
    disks.written_off.add(ONE)
    assert await disks.report(ONE)
    volumes.away = {"node1"}
    with pytest.raises(MemberAway):
        await disks.report(ONE)


async def test_members_of_disks_are_known_also_while_they_are_away() -> None:
    volumes = ScriptedVolumes(one="node1", two="node2")
    volumes.members["layer-x"] = "node1"
    volumes.away = {"node2"}
    assert await disks_of(volumes).members() == {ONE: "node1", TWO: "node2"}
