"""A member of a cluster of three is killed or cut off, and returns: one builder has a backup, the others wait."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
from tests.acceptance import scenarios
from tests.acceptance.incus_members import (
    WRITING_APP,
    Visitors,
    apps,
    events,
    lines_of,
    running,
    runs_of,
    until,
    volumes,
)
from tests.acceptance.incus_service import service_on
from tests.acceptance.live_service import LiveService
from tests.backends import rest_server
from tests.incus import IncusCluster, running_cluster

pytestmark = [pytest.mark.root, pytest.mark.slow]


@pytest.fixture(scope="module")
def cluster() -> Iterator[IncusCluster]:
    with running_cluster(3) as cluster:
        cluster.run("incus", "1", "config", "set", "cluster.offline_threshold=11")
        yield cluster


@pytest.fixture(scope="module")
def service(cluster: IncusCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveService]:
    folder = tmp_path_factory.mktemp("m")
    with cluster.network_of(), rest_server(folder / "rest", "10.98.0.11") as server:
        more = {
            "BUILDERD_BACKUP__REPOSITORY": server.url,
            "BUILDERD_EGRESS__ALLOW": "10.98.0.11/32",
            "BUILDERD_INCUS__RECOVER": "backup",
            "BUILDERD_INCUS__RECOVER_AFTER": "1",
        }
        with service_on(cluster, folder / "data", **more) as service:
            yield service


@pytest.mark.parametrize("fault", ["kill", "cut"])
def test_builders_of_a_lost_member(fault: str, cluster: IncusCluster, service: LiveService) -> None:
    """One comes back elsewhere from its backup, one waits, one is stopped and one deleted meanwhile."""
    number = {"kill": "2", "cut": "3"}[fault]
    member = f"node{number}"
    # Each on the member with the fewest disks.
    made = [service.create(f"{fault}-{count}", WRITING_APP) for count in range(12)]
    where = {data["uuid"]: service.builder(data["uuid"])["member"] for data in made}
    lost = [data for data in made if where[data["uuid"]] == member]
    assert len(lost) == 4
    kept, waiting, stopped, deleted = (data["uuid"] for data in lost)
    others = [data for data in made if data not in lost]
    answer = service.call("POST", f"/builders/{kept}/backups")
    assert answer.status_code == 201, answer.text
    first = service.visit(lost[0]).text
    # The copy that was backed up goes.
    until(lambda: len(on(cluster, member)) == 4)
    before = on(cluster, member)

    with Visitors(service, others[0]) as visitors:
        cluster.run(fault, number)
        begun = time.monotonic()
        seconds: dict[str, float] = {}
        until(lambda: "member.lost" in events(service, waiting))
        seconds["told"] = time.monotonic() - begun
        assert member in service.builder(waiting)["status_reason"]
        asked = time.monotonic()
        assert service.call("POST", f"/builders/{stopped}/stop").json()["data"]["status"] == "stopped"
        assert service.call("DELETE", f"/builders/{deleted}").status_code == 200
        seconds["stop and delete"] = time.monotonic() - asked
        assert service.call("GET", f"/builders/{deleted}").status_code == 404
        until(lambda: "restore.finished" in events(service, kept))
        service.wait_served(lost[0])
        seconds["served elsewhere"] = time.monotonic() - begun
        second = service.visit(lost[0]).text
        assert second != first
        assert service.builder(kept)["member"] not in ("", member)
        assert service.builder(waiting)["member"] == member
        assert all(service.visit(data).status_code == 200 for data in others)
        if fault == "cut":
            # It cannot be told to stop: it writes on, each on its own disk.
            old = next(iter(sorted(before)))[: -len(f"@{member}")]
            count = len(lines_of(cluster, int(number), old))
            until(lambda: len(lines_of(cluster, int(number), old)) > count)

        returned = time.monotonic()
        cluster.run({"kill": "start", "cut": "mend"}[fault], number)
        until(lambda: "member.returned" in events(service, waiting))
        # What was overtaken is gone, with its app; the disks of those that waited, and of the stopped one, are there.
        until(lambda: len(on(cluster, member) & before) == 2)
        service.wait_served(lost[1])
        until(lambda: len(running(cluster, member)) == 1)
        seconds["whole after the return"] = time.monotonic() - returned
    assert visitors.failures == []

    here = int(service.builder(kept)["member"][-1])
    disk = next(
        one for one in volumes(cluster) - before if one.endswith(f"@node{here}") and _is_of(cluster, one, second)
    )
    # What the backup had, then the app that came back: nothing of the other one after it.
    assert runs_of(lines_of(cluster, here, disk.partition("@")[0])) == [first, second]
    assert service.visit(lost[0]).text == second
    assert service.call("POST", f"/builders/{stopped}/start").json()["data"]["status"] == "running"
    assert len(scenarios.run(service, stopped, "cat written")[1].splitlines()) > 1
    for data in made:
        service.call("DELETE", f"/builders/{data['uuid']}")
    until(lambda: not volumes(cluster))
    until(lambda: not apps(cluster))
    longest = f"{visitors.longest:.2f} s at most for {len(visitors.answers)} visits of another app"
    sys.stderr.write(f"{fault}: seconds { ({name: round(value, 1) for name, value in seconds.items()}) }; {longest}\n")


def on(cluster: IncusCluster, member: str) -> set[str]:
    """Return the disks on a member."""
    return {volume for volume in volumes(cluster) if volume.endswith(f"@{member}")}


def _is_of(cluster: IncusCluster, volume: str, run: str) -> bool:
    """Return True if the app of this run writes on the disk."""
    name, _, member = volume.partition("@")
    try:
        return run in runs_of(lines_of(cluster, int(member[-1]), name))
    except subprocess.CalledProcessError:
        return False
