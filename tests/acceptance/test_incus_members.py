"""A member of a cluster of three is killed, and returns: one builder has a backup, the other waits."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tests.acceptance import scenarios
from tests.acceptance.incus_service import service_on
from tests.acceptance.live_service import LiveService
from tests.backends import rest_server
from tests.incus import IncusCluster, running_cluster

pytestmark = [pytest.mark.root, pytest.mark.slow]

#: Against hanging only.
MOST_SECONDS = 600


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


def until(holds: Callable[[], Any]) -> None:
    deadline = time.monotonic() + MOST_SECONDS
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.5)


def events(service: LiveService, uuid: str) -> list[str]:
    found = service.call("GET", f"/builders/{uuid}/events?per_page=100").json()["data"]
    return [one["type"] for one in found]


def volumes(cluster: IncusCluster) -> set[str]:
    """Return the disks in the cluster as ``name@member``."""
    url = "http://incus/1.0/storage-pools/default/volumes/custom?project=builderd&recursion=1"
    command = ["curl", "-sS", "--unix-socket", str(cluster.socket()), url]
    found = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)["metadata"]
    return {f"{one['name']}@{one['location']}" for one in found if one["name"].startswith("disk-")}


def test_builder_of_a_killed_member_comes_back_elsewhere_and_the_other_when_it_returns(
    cluster: IncusCluster, service: LiveService
) -> None:
    # Each on the member with the fewest disks.
    made = [service.create(f"app-{number}") for number in range(6)]
    lost = [data for data in made if service.builder(data["uuid"])["member"] == "node2"]
    assert len(lost) == 2
    kept, waiting = (data["uuid"] for data in lost)
    for uuid in (kept, waiting):
        assert scenarios.run(service, uuid, "echo of $HOSTNAME > note")[0] == 0
    answer = service.call("POST", f"/builders/{kept}/backups")
    assert answer.status_code == 201, answer.text
    before = {volume for volume in volumes(cluster) if volume.endswith("@node2")}

    cluster.run("kill", "2")
    killed = time.monotonic()
    until(lambda: "member.lost" in events(service, waiting))
    seconds = {"told": time.monotonic() - killed}
    assert "node2" in service.builder(waiting)["status_reason"]
    until(lambda: "restore.finished" in events(service, kept))
    until(lambda: service.builder(kept)["member"] in ("node1", "node3"))
    service.wait_served(lost[0])
    seconds["served elsewhere"] = time.monotonic() - killed
    assert scenarios.run(service, kept, "cat note")[0] == 0
    assert service.builder(waiting)["member"] == "node2"
    others = [data for data in made if data not in lost]
    assert all(service.visit(data).status_code == 200 for data in others)

    cluster.run("start", "2")
    service.wait_served(lost[1])
    seconds["the other served"] = time.monotonic() - killed
    assert scenarios.run(service, waiting, "cat note")[0] == 0
    assert "member.returned" in events(service, waiting)
    # The disk that was replaced is gone, the one of the builder that waited is there.
    until(lambda: len({volume for volume in volumes(cluster) if volume.endswith("@node2")} & before) == 1)
    assert service.builder(kept)["member"] in ("node1", "node3")
    sys.stderr.write(f"seconds since the member was killed: {seconds}\n")
