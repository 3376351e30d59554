"""Disks and volumes: on members that are away or have a full pool, and what is done when a member returns."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import nullcontext
from typing import Any

import pytest
from tests.unit.engine.incus.scripted_incus import ScriptedIncus, machine_on

from builderd.core.ids import DiskId, SandboxId
from builderd.core.members import MemberAway
from builderd.dependencies.model import LayerPlan
from builderd.engine.incus import image, network
from builderd.engine.incus.client import IncusNotFound, PoolFull, error_of
from builderd.engine.incus.cluster import FEATURES
from builderd.engine.incus.disks import Disks
from builderd.engine.incus.engine import Machine
from builderd.engine.incus.helper import _error_of
from builderd.engine.incus.instances import Volumes
from builderd.engine.incus.layers import Layers
from builderd.engine.oci.storage.layers import Transcript
from builderd.sandboxes.model import EndCause, SandboxState

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
    return Disks(volumes, lambda _: None, lambda: None, tuple)  # type: ignore[arg-type, return-value]


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


#: Words of Incus 6.0 for a change that it has recorded, and for one that it has not.
COPY = "Failed to write backup file: Failed to create file: no space left on device"
FIRST = "Failed to mount: no space left on device"


def refuse(incus: ScriptedIncus, words: str) -> Callable[[str, str], Any]:
    """Return a hook that refuses changes of instances, as a member with a full pool does."""

    async def hook(method: str, path: str) -> None:
        if path.startswith("/instances") and method in ("PUT", "PATCH"):
            for found in incus.instances.values():
                # As Incus does.
                found["config"] = {name: value for name, value in found["config"].items() if value}
            raise error_of(500, words, f"{method} {path}")

    return hook


def stopped_app() -> ScriptedIncus:
    incus = ScriptedIncus()
    incus.has_instance("s-a", status="Stopped", volumes=["disk-d"], builder="b", disk="d", started="1", end="{}")
    return incus


async def test_recorded_change_counts_where_its_copy_has_no_space() -> None:
    incus = stopped_app()
    instances = machine_on(incus).instances
    incus.after = refuse(incus, COPY)
    await instances.mark("s-a", {"frozen": "2"})
    found = await incus.get("/instances/s-a")
    assert found["config"]["user.builderd.frozen"] == "2"
    await instances.strip(found, {"removed": "3", "ip": ""})
    assert incus.attached("s-a") == set(), "its disk can be deleted"
    assert await instances.kept("b") == ["s-a"], "it is deleted with its builder"


async def test_change_that_was_not_recorded_is_no_capacity() -> None:
    incus = stopped_app()
    instances = machine_on(incus).instances
    incus.before = refuse(incus, FIRST)
    with pytest.raises(PoolFull, match="no space left on device"):
        await instances.mark("s-a", {"frozen": "2"})
    with pytest.raises(PoolFull):
        await instances.strip(await incus.get("/instances/s-a"), {})
    assert incus.attached("s-a") == {"disk-d"}


async def test_disk_is_let_go_by_a_helper_of_a_full_pool() -> None:
    incus = ScriptedIncus()
    machine = machine_on(incus)
    helper = machine.helper("node2")
    incus.has_instance(helper.name, volumes=["disk-d"])
    helper._attached["disk-d"] = 0
    incus.after = refuse(incus, COPY)
    await helper.detach("disk-d")
    assert incus.attached(helper.name) == set()
    incus.before, incus.after = refuse(incus, FIRST), incus.before
    helper._attached["disk-d"] = 0
    incus.has_instance(helper.name, volumes=["disk-d"])
    with pytest.raises(PoolFull):
        await helper.detach("disk-d")


def test_write_without_space_is_the_pools_fault_and_one_beyond_a_limit_is_not() -> None:
    full = _error_of({"error": "OSError", "errno": 28, "message": "write: /mnt/secret"}, "node2")
    assert isinstance(full, PoolFull)
    assert full.retry_after
    assert "storage pool of Incus on the member node2 is full" in full.message
    assert "/mnt" not in full.message
    assert isinstance(_error_of({"error": "OSError", "errno": 122, "message": ""}, "node2"), OSError)


@pytest.mark.parametrize(
    ("line", "full"), [("OSError: [Errno 28] No space left on device", True), ("SyntaxError", False)]
)
async def test_build_without_space_is_the_pools_fault(line: str, full: bool) -> None:
    layers = Layers(None, None, None, None, None, dict)  # type: ignore[arg-type]
    transcript = Transcript(lambda _: None)
    transcript.add(line)
    plan = LayerPlan("key", {}, (), runs_foreign_code=False)
    with pytest.raises(PoolFull, match="member node2") if full else nullcontext():
        await layers._refuse_full(plan, "new-1", "node2", transcript)


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
