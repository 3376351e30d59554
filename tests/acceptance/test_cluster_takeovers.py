"""Two services are killed in the middle of a redeploy: the next one ends it, and nothing is twice."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from tests.acceptance import scenarios
from tests.acceptance.incus_members import apps, until, volumes
from tests.acceptance.live_service import TINY_APP, body
from tests.acceptance.test_cluster_services import Services, share_keys
from tests.incus import IncusCluster, running_cluster
from tests.postgres import PostgresServer

pytestmark = [pytest.mark.root, pytest.mark.postgres, pytest.mark.slow]


@pytest.fixture(scope="module")
def cluster() -> Iterator[IncusCluster]:
    with running_cluster(1) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def services(
    cluster: IncusCluster,
    tmp_path_factory: pytest.TempPathFactory,
    postgres_server: PostgresServer,
) -> Iterator[Services]:
    with postgres_server.database() as database, cluster.network_of():
        running = Services(cluster, tmp_path_factory.mktemp("t"), database)
        try:
            running.one.start()
            running.two.data_dir.mkdir()
            share_keys(running.one, running.two)
            yield running
        finally:
            running.down()


def killed_twice(services: Services, first: str, second: str, ask: tuple[str, str, dict[str, Any] | None]) -> float:
    """Have one service die at the first fault point, while it works on the call, and its successor at the second.

    Return the seconds from the first death until a third one, on the successor's folder, answers.
    """
    one, two = services.one, services.two
    one.terminate()
    one.start(first)
    services.stand_by(two, second)
    method, path, sent = ask
    with contextlib.suppress(httpx.TransportError):
        one.call(method, path, headers={"Prefer": "respond-async"}, json=sent)
    one.wait_dead()
    begun = time.monotonic()
    two.wait_dead()
    assert [service.process.returncode for service in (one, two) if service.process] == [-9, -9], two.log_tail()
    two.start()
    return time.monotonic() - begun


@pytest.fixture
def kept(services: Services) -> Iterator[dict[str, Any]]:
    """A builder with a note, on the first service."""
    one = services.one
    data = one.create("kept")
    assert scenarios.run(one, data["uuid"], "echo before > note; sync note") == (0, "")
    yield data
    services.two.call("DELETE", f"/builders/{data['uuid']}?purge=true")


def assert_one_of_each(cluster: IncusCluster) -> None:
    """Assert that one app runs, and that no disk but its own is left."""
    until(lambda: len([one for one in apps(cluster) if one["status"] == "Running"]) == 1)
    until(lambda: len(volumes(cluster)) == 1)


def test_redeploy_that_kills_two_services_is_finished_once(
    services: Services, cluster: IncusCluster, kept: dict[str, Any]
) -> None:
    changed = body("kept", TINY_APP.replace(".encode()", ".upper().encode()"))
    seconds = killed_twice(
        services, "StopSandbox.begun", "StartSandbox.done", ("PUT", f"/builders/{kept['uuid']}", changed)
    )
    two = services.two
    until(lambda: two.visit(kept).text == "HELLO")
    until(lambda: two.builder(kept["uuid"])["version"] == 2)
    found = two.call("GET", f"/builders/{kept['uuid']}/versions").json()["data"]
    assert [(one["version"], one["current"]) for one in found] == [(2, True), (1, False)]
    assert scenarios.run(two, kept["uuid"], "cat note") == (0, "before\n")
    assert_one_of_each(cluster)
    print(f"redeploy killed twice: the third answers after {seconds:.1f} s")  # noqa: T201
