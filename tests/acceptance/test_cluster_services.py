"""Two services on one cluster and one PostgreSQL: each continues what the other one was killed in the middle of."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psycopg
import pytest
from tests.acceptance.live_service import PATIENCE, PLAIN, TINY_APP, LiveService, body
from tests.incus import IncusCluster, running_cluster
from tests.postgres import PostgresServer

pytestmark = [pytest.mark.root, pytest.mark.postgres, pytest.mark.slow]


class Services:
    """Services on one database, in the network of the cluster's first member; ``more`` settings go to both."""

    def __init__(self, cluster: IncusCluster, folder: Path, database: str, **more: str) -> None:
        self._database = database
        settings = {
            "BUILDERD_ENGINE": "incus",
            "BUILDERD_INCUS__SOCKET": str(cluster.socket()),
            "BUILDERD_DATABASE_URL": database,
            "BUILDERD_STORE__OVERCOMMIT": "20",
            **more,
        }
        self.one, self.two = (LiveService(folder / name, settings, cold=True) for name in ("one", "two"))

    def stand_by(self, service: LiveService, fault: str = "") -> None:
        """Start a service beside the one that works, and wait until that one knows it."""
        ports = ("--port", str(service.port), "--preview-port", str(service.preview_port))
        env = service.environment(**({"BUILDERD_FAULT": fault} if fault else {}))
        with service.log_file.open("ab") as log:
            service.process = subprocess.Popen(service.command("serve", *ports), env=env, stdout=log, stderr=log)
        deadline = time.monotonic() + PATIENCE
        while str(service.data_dir) not in self._known():
            assert service.is_up, service.log_tail()
            assert time.monotonic() < deadline, service.log_tail()
            time.sleep(0.1)

    def _known(self) -> list[str]:
        with psycopg.connect(self._database) as connection:
            rows = connection.execute(
                "SELECT s.data_dir FROM services s, database_lease l WHERE s.known_in = l.term"
            ).fetchall()
        return [name for (name,) in rows]

    def down(self) -> None:
        for service in (self.one, self.two):
            if service.is_up:
                service.terminate()
            if service.data_dir.exists():
                subprocess.run(service.command("down"), env=service.environment(), check=True)


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory, postgres_server: PostgresServer) -> Iterator[Services]:
    with running_cluster(1) as cluster, postgres_server.database() as database, cluster.network_of():
        running = Services(cluster, tmp_path_factory.mktemp("services"), database)
        try:
            yield running
        finally:
            running.down()


def share_keys(source: LiveService, target: LiveService) -> None:
    for name in ("vault.key", "ssh_host_key"):
        shutil.copy2(source.data_dir / name, target.data_dir / name)
    target.token = source.token


def refused(service: LiveService) -> bool:
    """Return True when the previews of a service take no connection."""
    with contextlib.suppress(httpx.ConnectError):
        httpx.get(f"http://127.0.0.1:{service.preview_port}/", timeout=5, **PLAIN)
        return False
    return True


def test_a_service_without_the_keys_is_refused_and_one_with_them_stands_by(services: Services) -> None:
    one, two = services.one, services.two
    one.start()
    with pytest.raises(AssertionError, match="the service ended with 4"):
        two.start()
    assert f"{one.data_dir}/vault.key {two.data_dir}/vault.key" in two.log_tail()
    share_keys(one, two)
    services.stand_by(two)
    health = httpx.get(f"{two.url}/healthz", timeout=5, **PLAIN)
    assert health.status_code == 200
    asked = two.call("GET", "/builders")
    assert asked.status_code == 503
    assert "stands by" in asked.json()["message"]
    two.terminate()
    one.terminate()


def test_work_that_kills_two_services_is_finished(services: Services) -> None:
    """The first dies in the middle of a create, the second continues it and dies later in it, and starts again."""
    one, two = services.one, services.two
    one.start()
    kept = one.create("kept")
    one.terminate()
    one.start("Review.done")
    services.stand_by(two, "StartSandbox.done")
    assert one.visit(kept).text == "hello"
    asked = one.call("POST", "/builders", json=body("begun"), headers={"Prefer": "respond-async"})
    uuid = asked.json()["data"]["uuid"]
    one.wait_dead()
    two.wait_dead()
    assert refused(one), "a killed service's routes are out of date once another works"
    two.start()
    data = two.wait_status(uuid, "running")
    for builder in (data, kept):
        two.wait_served(builder)
        assert two.visit(builder).text == "hello"


def test_service_that_ends_in_order_is_continued_at_once_with_its_code(services: Services) -> None:
    one, two = services.one, services.two
    data = two.create("moved")
    changed = body("moved", TINY_APP.replace(".encode()", ".upper().encode()"))
    assert two.call("PUT", f"/builders/{data['uuid']}", json=changed).status_code == 200
    assert two.visit(data).text == "HELLO"
    services.stand_by(one)
    began = time.monotonic()
    two.terminate()
    assert refused(two)
    one.wait_ready()
    one.wait_served(data)
    print(f"continued after {time.monotonic() - began:.1f} s")  # noqa: T201
    # Only the database has the code of a version that the other service received.
    back = one.call("POST", f"/builders/{data['uuid']}/rollback", json={"version": 1})
    assert back.status_code == 200, back.text
    assert one.visit(data).text == "hello"
    services.stand_by(two)
    assert not refused(one)
    assert refused(two)
