"""Disks while members are away: written off until their member answers again, and no longer."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from builderd.adapters.engines.incus.cluster import Member
from builderd.adapters.engines.incus.disks import Disks
from builderd.adapters.engines.incus.engine import Machine
from builderd.domain.database_lease import MemberAway
from builderd.domain.errors import EngineUnavailable
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


async def test_return_of_one_member_takes_back_its_disks_alone() -> None:
    volumes = ScriptedVolumes(one="node1", two="node2")
    disks = disks_of(volumes)
    volumes.away = {"node1", "node2"}
    disks.written_off |= {ONE, TWO, DiskId("deleted")}
    assert await disks.report(ONE) is None
    volumes.away = {"node2"}
    await disks.take_back(volumes.away)
    assert disks.written_off == {TWO}
    assert await disks.report(TWO) is None
    volumes.away = {"node1", "node2"}
    with pytest.raises(MemberAway):
        await disks.report(ONE)


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


async def test_disks_are_taken_back_first_when_a_member_arrives() -> None:
    """Later steps of an arrival ask the member, which may be away again by the next try."""
    volumes = ScriptedVolumes(one="node1")
    disks = disks_of(volumes)
    disks.written_off.add(ONE)

    async def refuse(*_: object) -> None:
        raise EngineUnavailable("not now")

    async def finish_on(_: object) -> None:
        assert not disks.written_off

    members = SimpleNamespace(away_names=frozenset)
    lost = SimpleNamespace(finish_on=finish_on)
    cluster = SimpleNamespace(ensure_network=refuse)
    machine: Any = SimpleNamespace(disks=disks, members=members, lost=lost, cluster=cluster, options=None)
    with pytest.raises(EngineUnavailable):
        await Machine.on_arrival(machine, [Member("node1", "10.0.0.1", True)])
    assert not disks.written_off
