"""The member on which the service works is evacuated and restored; the service works and restarts there meanwhile."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator

import pytest
from tests.acceptance import scenarios
from tests.acceptance.incus_members import WRITING_APP, Visitors, builderd, volumes
from tests.acceptance.incus_service import service_on
from tests.acceptance.live_service import TINY_APP, LiveService, body
from tests.backends import rest_server
from tests.incus import IncusCluster, address_of, running_cluster

# Setup makes the cluster.
pytestmark = [pytest.mark.root, pytest.mark.slow, pytest.mark.timeout(900)]

#: Prints the name of the app's own builder, as the service tells it inside.
ASKS = """\
import json, os, urllib.request
url = f"{os.environ['BUILDERD_URL']}/api/v1/builders/{os.environ['BUILDER_UUID']}"
request = urllib.request.Request(url, headers={"Authorization": "Bearer " + os.environ["SERVICE_TOKEN"]})
print(json.load(urllib.request.urlopen(request, timeout=10))["data"]["name"])
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[IncusCluster]:
    with running_cluster(3) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def service(cluster: IncusCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveService]:
    folder, address = tmp_path_factory.mktemp("o"), address_of(1)
    with cluster.network_of(), rest_server(folder / "rest", address) as server:
        more = {"BUILDERD_BACKUP__REPOSITORY": server.url, "BUILDERD_EGRESS__ALLOW": f"{address}/32"}
        with service_on(cluster, folder / "data", **more) as service:
            yield service


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
    assert service.call("PUT", f"/builders/{again['uuid']}/files/asks.py", content=ASKS).status_code in (200, 201)
    assert scenarios.run(service, again["uuid"], "python3 asks.py") == (0, "again\n")
    for data in [*made, new, again]:
        assert service.call("DELETE", f"/builders/{data['uuid']}?purge=true").status_code == 200
    sys.stderr.write(
        f"the service's member evacuated in {seconds:.1f} s; {len(visitors.answers)} visits of a moved app, "
        f"{visitors.longest:.2f} s at most; {len(others.answers)} of another, {others.longest:.2f} s at most\n"
    )
