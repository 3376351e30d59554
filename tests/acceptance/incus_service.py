"""A live service on the engine incus, in the network of a cluster's first member, where its caller is meanwhile."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.acceptance.live_service import LiveService
from tests.incus import IncusCluster

INCUS = "incus"


@contextmanager
def service_on(cluster: IncusCluster, data_dir: Path, **more: str) -> Iterator[LiveService]:
    with cluster.network_of(), running_on(cluster, data_dir, **more) as service:
        yield service


@contextmanager
def running_on(cluster: IncusCluster, data_dir: Path, **more: str) -> Iterator[LiveService]:
    """A service that is up until the block ends. Its caller enters the network of the member to reach it."""
    settings = {
        "BUILDERD_ENGINE": INCUS,
        "BUILDERD_INCUS__SOCKET": str(cluster.socket()),
        # More disks than a member's small pool has room for at once.
        "BUILDERD_STORE__OVERCOMMIT": "20",
        **more,
    }
    with cluster.network_of():
        # Started cold: a process that forks services would stay in the network that it was started in.
        service = LiveService(data_dir, settings, cold=True)
    try:
        with cluster.network_of():
            service.start()
        yield service
    finally:
        # A test may have removed the folder.
        data_dir.mkdir(exist_ok=True)
        with cluster.network_of():
            service.down()


def is_on_incus(service: LiveService) -> bool:
    return service.settings.get("BUILDERD_ENGINE") == INCUS


def ask_incus(service: LiveService, path: str, method: str = "GET") -> Any:
    """Return the metadata of Incus's answer, in the project of a service."""
    project = project_of(service)
    url = f"http://incus/1.0/{path}{'&' if '?' in path else '?'}project={project}"
    socket = service.settings["BUILDERD_INCUS__SOCKET"]
    command = ["curl", "-sS", "--max-time", "60", "-X", method, "--unix-socket", socket, url]
    return json.loads(subprocess.run(command, check=True, capture_output=True).stdout)["metadata"]


def project_of(service: LiveService) -> str:
    return service.settings.get("BUILDERD_INCUS__PROJECT", "builderd")


def instances_on_incus(service: LiveService) -> dict[str, str]:
    """Return the member of each instance of an app by its name, also of ended ones that are kept for their logs."""
    found = ask_incus(service, "instances?recursion=1")
    return {one["name"]: one["location"] for one in found if one["name"].startswith("s-")}


def disks_on_incus(service: LiveService) -> dict[str, str]:
    """Return the member of each disk by the name of its volume."""
    found = ask_incus(service, "storage-pools/default/volumes/custom?recursion=1")
    return {one["name"]: one["location"] for one in found if one["name"].startswith("disk-")}


def incus_traces(service: LiveService) -> dict[str, list[str]]:
    """Return instances of the service in the cluster, those that run, volumes of disks, routes to apps, and bundles."""
    instances = ask_incus(service, "instances?recursion=1")
    made = {one["name"]: one["status"] for one in instances if one["name"].startswith(("s-", "build-"))}
    # Its own: apps of other services in this network come and go.
    subnet = service.settings.get("BUILDERD_INCUS__SUBNET", "10.99.0.0/16")
    listed = ["ip", "-4", "route", "show", "root", subnet, "type", "unicast"]
    routes = subprocess.run(listed, check=True, capture_output=True, text=True).stdout.splitlines()
    bundles = service.data_dir / "bundles"
    return {
        # As processes: no service at rest has any. A stopped one is kept for its log.
        "processes": sorted(made),
        "running": sorted(name for name, status in made.items() if status == "Running"),
        "disks": sorted(disks_on_incus(service)),
        "routes": sorted(line for line in routes if " via " in line),
        "bundles": sorted(str(path.relative_to(bundles)) for path in bundles.rglob("*") if path.is_file()),
    }
