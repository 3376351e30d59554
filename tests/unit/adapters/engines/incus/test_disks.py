"""While members are away: disks are written off until theirs answers, and what is to be done is done on its return."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import pytest
from tests.unit.adapters.engines.incus.scripted_incus import ScriptedIncus, machine_on

from builderd.adapters.engines.incus import image, network
from builderd.adapters.engines.incus.client import IncusNotFound
from builderd.adapters.engines.incus.cluster import FEATURES
from builderd.adapters.engines.incus.disks import Disks
from builderd.adapters.engines.incus.engine import Machine
from builderd.domain.database_lease import MemberAway
from builderd.domain.ids import DiskId, SandboxId
from builderd.domain.sandboxes import EndCause, SandboxState

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


SANDBOX = SandboxId("1")
OWN = {"builder": "b", "disk": "d", "ip": "10.99.0.20", "started": "1.0"}


class Incus(ScriptedIncus):
    async def file(self, instance: str, path: str) -> bytes:
        if path != image.ORDERED:
            raise IncusNotFound(404, path)
        return b""


@pytest.fixture(autouse=True)
def ip(monkeypatch: pytest.MonkeyPatch) -> None:
    async def nothing(*_: str) -> str:
        return ""

    monkeypatch.setattr(network, "_ip", nothing)


def lost(incus: Incus) -> Machine:
    """Return the parts of a service that has lost node2, which has an app."""
    incus.has_volume("disk-d")
    incus.volumes["disk-d"]["used_by"] = ["/1.0/instances/s-1?project=builderd"]
    incus.has_instance("s-1", status="Error")
    machine = machine_on(incus)
    machine.members._away = {"node2": 0.0}
    return machine


def let_return(incus: Incus, machine: Machine) -> None:
    machine.members._away = {}
    incus.has_instance("s-1", **OWN)


async def test_stop_is_answered_at_once_and_carried_out_by_the_next_service() -> None:
    incus = Incus()
    machine = lost(incus)
    stopped = await machine.sandboxes.stop(SANDBOX, 10)
    assert stopped.end
    assert stopped.end.cause is EndCause.STOPPED
    assert (await machine.sandboxes.report(SANDBOX)).state is SandboxState.EXITED
    await machine.sandboxes.remove(SANDBOX)
    again = machine_on(incus)
    await again.lost.load()
    await again.members.look()
    let_return(incus, again)
    await again.on_change()
    assert incus.instances["s-1"]["status"] == "Stopped"
    assert incus.project_config == FEATURES
    ended = (await again.sandboxes.report(SANDBOX)).end
    assert ended
    assert ended.cause is EndCause.STOPPED


async def test_disk_is_deleted_with_the_app_that_has_it() -> None:
    incus = Incus()
    machine = lost(incus)
    assert await machine.lost.delete_later(DiskId("d"), machine.members.away_names())
    assert not await machine.lost.delete_later(DiskId("other"), machine.members.away_names())
    let_return(incus, machine)
    await machine.members.look()
    await machine.on_change()
    assert (incus.instances, incus.volumes) == ({}, {})


async def test_start_on_the_disk_of_an_app_that_is_to_end_ends_it_first() -> None:
    incus = Incus()
    machine = lost(incus)
    await machine.sandboxes.stop(SANDBOX, 10)
    let_return(incus, machine)
    await machine.sandboxes.refuse_users(DiskId("d"), ["s-1"])
    assert incus.instances["s-1"]["status"] == "Stopped"
