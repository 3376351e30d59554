"""Members are evacuated while their apps are visited, restored, and removed: by builderd's own commands."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
from tests.acceptance import scenarios
from tests.acceptance.incus_members import WRITING_APP, Visitors, builderd, lines_of, runs_of, volumes
from tests.acceptance.incus_service import service_on
from tests.acceptance.live_service import TINY_APP, LiveService, body
from tests.backends import rest_server
from tests.incus import INTERNET, IncusCluster, running_cluster

# Setup makes the cluster.
pytestmark = [pytest.mark.root, pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def cluster() -> Iterator[IncusCluster]:
    with running_cluster(3) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def service(cluster: IncusCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveService]:
    folder = tmp_path_factory.mktemp("e")
    with (
        rest_server(folder / "rest", INTERNET, lambda: cluster.network_of(0)) as server,
        service_on(cluster, folder / "data", BUILDERD_BACKUP__REPOSITORY=server.url) as service,
    ):
        yield service


#: Reads its own builder from inside an app, and tries other ports of the service's member.
ASKS = """\
import json, os, socket, urllib.request
url = os.environ["BUILDERD_URL"]
head = {"Authorization": "Bearer " + os.environ["SERVICE_TOKEN"]}
own = f"{url}/api/v1/builders/{os.environ['BUILDER_UUID']}"
print(json.load(urllib.request.urlopen(urllib.request.Request(own, headers=head), timeout=10))["data"]["name"])
host = url.split("/")[2].split(":")[0]
for name, port in (("10.98.0.11", 8443), ("10.98.0.12", 8443), ("10.98.0.13", 8443), (host, API_PORT)):
    try:
        socket.create_connection((name, port), 2).close()
        print("reached", name, port)
    except OSError:
        pass
"""


def asks(service: LiveService) -> str:
    return ASKS.replace("API_PORT", str(service.port))


def test_apps_on_all_members_reach_the_service_at_its_one_port(cluster: IncusCluster, service: LiveService) -> None:
    made = [service.create(f"asks-{count}") for count in range(3)]
    assert {service.builder(data["uuid"])["member"] for data in made} == {"node1", "node2", "node3"}
    for data in made:
        sent = service.call("PUT", f"/builders/{data['uuid']}/files/asks.py", content=asks(service))
        assert sent.status_code in (200, 201)
        assert scenarios.run(service, data["uuid"], "python3 asks.py") == (0, f"{data['name']}\n")
    for data in made:
        service.call("DELETE", f"/builders/{data['uuid']}")


def test_member_on_which_the_service_works_is_evacuated_and_restored(
    cluster: IncusCluster, service: LiveService
) -> None:
    """The app moves; the service creates, executes, redeploys, takes backups and restarts meanwhile."""
    made = [service.create(f"own-{count}", WRITING_APP) for count in range(3)]
    (here,) = (data for data in made if service.builder(data["uuid"])["member"] == "node1")
    run = service.visit(here).text
    with Visitors(service, here) as visitors, Visitors(service, next(d for d in made if d != here)) as others:
        begun = time.monotonic()
        assert builderd(service, "evacuate", "node1") == {"member": "node1", "moved": 1}
        seconds = time.monotonic() - begun
    assert (visitors.failures, others.failures) == ([], [])
    assert not [volume for volume in volumes(cluster) if volume.endswith("@node1")]
    assert service.visit(here).text != run
    shown = {one["name"]: one for one in builderd(service, "status")}
    assert (shown["node1"]["status"], shown["node1"]["disks"]) == ("Evacuated", 0)

    new = service.create("meanwhile")
    assert service.builder(new["uuid"])["member"] != "node1"
    assert scenarios.run(service, new["uuid"], "echo kept > note; cat note") == (0, "kept\n")
    taken = service.call("POST", f"/builders/{new['uuid']}/backups")
    assert taken.status_code == 201, taken.text
    changed = body("meanwhile", TINY_APP.replace(".encode()", ".upper().encode()"))
    assert service.call("PUT", f"/builders/{new['uuid']}", json=changed).status_code == 200
    assert service.visit(new).text == "HELLO"
    # Incus has taken away the bridge on whose address the service listens for apps.
    service.terminate()
    service.start()
    for data in [*made, new]:
        service.wait_served(data)
    assert scenarios.run(service, new["uuid"], "cat note") == (0, "kept\n")

    builderd(service, "restore", "node1")
    again = service.create("again", WRITING_APP)
    assert service.builder(again["uuid"])["member"] == "node1"
    # It listened there before the bridge came back.
    sent = service.call("PUT", f"/builders/{again['uuid']}/files/asks.py", content=asks(service))
    assert sent.status_code == 201
    assert scenarios.run(service, again["uuid"], "python3 asks.py") == (0, "again\n")
    for data in [*made, new, again]:
        assert service.call("DELETE", f"/builders/{data['uuid']}?purge=true").status_code == 200
    sys.stderr.write(
        f"the service's member evacuated in {seconds:.1f} s; {len(visitors.answers)} visits of a moved app, "
        f"{visitors.longest:.2f} s at most; {len(others.answers)} of another, {others.longest:.2f} s at most\n"
    )


def test_member_is_evacuated_under_load_restored_and_removed(cluster: IncusCluster, service: LiveService) -> None:
    made = [service.create(f"app-{count}", WRITING_APP) for count in range(6)]
    here = [data for data in made if service.builder(data["uuid"])["member"] == "node2"]
    assert len(here) == 2
    visited, stopped = here
    run = service.visit(visited).text
    assert scenarios.run(service, stopped["uuid"], "echo kept > note")[0] == 0
    assert service.call("POST", f"/builders/{stopped['uuid']}/stop").json()["data"]["status"] == "stopped"
    shown = {one["name"]: one for one in builderd(service, "status")}
    assert [shown[f"node{count}"]["disks"] for count in (1, 2, 3)] == [2, 2, 2]

    with Visitors(service, visited) as visitors, Visitors(service, next(d for d in made if d not in here)) as others:
        begun = time.monotonic()
        assert builderd(service, "evacuate", "node2") == {"member": "node2", "moved": 2}
        seconds = time.monotonic() - begun
    sys.stderr.write(f"visits of the moved app that failed: {visitors.failures}\n")
    assert set(visitors.failures) <= {"503"}
    assert others.failures == []
    assert not [volume for volume in volumes(cluster) if volume.endswith("@node2")]
    after = service.visit(visited).text
    assert after != run
    member = service.builder(visited["uuid"])["member"]
    assert member in ("node1", "node3")
    moved = [
        lines
        for volume in volumes(cluster)
        if volume.endswith(f"@{member}") and after in runs_of(lines := _lines(cluster, volume))
    ]
    # Nothing of what it wrote is lost: the counts of the first run have no gap, and the second follows.
    (lines,) = moved
    assert runs_of(lines) == [run, after]
    counts = [int(line.split()[1]) for line in lines if line.startswith(run)]
    assert counts == list(range(1, len(counts) + 1))
    assert service.builder(stopped["uuid"])["status"] == "stopped"
    assert service.call("GET", f"/builders/{stopped['uuid']}/files/note").text == "kept\n"
    assert service.call("POST", f"/builders/{stopped['uuid']}/start").json()["data"]["status"] == "running"
    shown = {one["name"]: one for one in builderd(service, "status")}
    assert (shown["node2"]["status"], shown["node2"]["disks"]) == ("Evacuated", 0)
    # New ones go elsewhere until it takes builders again.
    new = service.create("new", WRITING_APP)
    assert service.builder(new["uuid"])["member"] != "node2"
    builderd(service, "restore", "node2")
    again = service.create("again", WRITING_APP)
    assert service.builder(again["uuid"])["member"] == "node2"
    assert service.call("DELETE", f"/builders/{again['uuid']}").status_code == 200

    builderd(service, "evacuate", "node2")
    builderd(service, "remove", "node2")
    assert {one["name"] for one in builderd(service, "status")} == {"node1", "node3"}
    assert all(service.visit(data).status_code == 200 for data in made)
    sys.stderr.write(
        f"evacuated in {seconds:.1f} s; {len(visitors.answers)} visits of a moved app, {visitors.longest:.2f} s at "
        f"most; {len(others.answers)} of another, {others.longest:.2f} s at most\n"
    )


def _lines(cluster: IncusCluster, volume: str) -> list[str]:
    name, _, member = volume.partition("@")
    try:
        return lines_of(cluster, int(member[-1]), name)
    except subprocess.CalledProcessError:
        return []
