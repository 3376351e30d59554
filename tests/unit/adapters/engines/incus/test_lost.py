"""Work on a member that is away is noted in the cluster, and done when the member returns."""

from __future__ import annotations

import pytest
from tests.unit.adapters.engines.incus.scripted_incus import ScriptedIncus, machine_on

from builderd.adapters.engines.incus import image, network
from builderd.adapters.engines.incus.client import IncusNotFound
from builderd.adapters.engines.incus.cluster import FEATURES
from builderd.adapters.engines.incus.engine import Machine
from builderd.domain.ids import DiskId, SandboxId
from builderd.domain.sandboxes import EndCause, SandboxState

ONE = SandboxId("1")
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
    stopped = await machine.sandboxes.stop(ONE, 10)
    assert stopped.end
    assert stopped.end.cause is EndCause.STOPPED
    assert (await machine.sandboxes.report(ONE)).state is SandboxState.EXITED
    await machine.sandboxes.remove(ONE)
    again = machine_on(incus)
    await again.lost.load()
    await again.members.look()
    let_return(incus, again)
    await again.on_change()
    assert incus.instances["s-1"]["status"] == "Stopped"
    assert incus.project_config == FEATURES
    ended = (await again.sandboxes.report(ONE)).end
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
    await machine.sandboxes.stop(ONE, 10)
    let_return(incus, machine)
    await machine.sandboxes.refuse_users(DiskId("d"), ["s-1"])
    assert incus.instances["s-1"]["status"] == "Stopped"
