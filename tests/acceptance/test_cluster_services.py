"""Two services on one cluster and one PostgreSQL: one works, the other stands by and refuses calls.

Each continues what the other one was killed in the middle of, and nothing is twice.
"""

from __future__ import annotations

import contextlib
import hashlib
import platform
import random
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import psycopg
import pytest
from tests.acceptance import scenarios
from tests.acceptance.incus_members import apps, until, volumes
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
        self.cluster = cluster
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


def readiness(service: LiveService) -> httpx.Response:
    return httpx.get(f"{service.url}/readyz", timeout=10, **PLAIN)


class Asking:
    """Ask again and again in a thread, each time with a connection of its own; note when it went wrong."""

    def __init__(self, ask: Callable[[], httpx.Response]) -> None:
        self._ask = ask
        #: Begin, end and status of each call, 0 without an answer.
        self.answers: list[tuple[float, float, int]] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Asking:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(60)

    def described(self) -> str:
        failed = [one for one in self.answers if one[2] != 200]
        gone = failed[-1][1] - failed[0][0] if failed else 0.0
        counts = {status: sum(one[2] == status for one in self.answers) for status in {one[2] for one in self.answers}}
        slowest = max(end - begin for begin, end, status in self.answers if status == 200)
        return (
            f"{gone:.1f} s from the first failure to the last, answers {counts}, the slowest 200 took {slowest:.1f} s"
        )

    def _run(self) -> None:
        while not self._over.wait(0.1):
            begin = time.monotonic()
            try:
                status = self._ask().status_code
            except httpx.TransportError:
                status = 0
            self.answers.append((begin, time.monotonic(), status))


def test_a_service_without_the_keys_is_refused_and_one_with_them_stands_by(services: Services) -> None:
    one, two = services.one, services.two
    one.start()
    with pytest.raises(AssertionError, match="the service ended with 4"):
        two.start()
    assert f"{one.data_dir}/vault.key {two.data_dir}/vault.key" in two.log_tail()
    share_keys(one, two)
    services.stand_by(two)
    health = httpx.get(f"{two.url}/healthz", timeout=5, **PLAIN).json()["data"]
    assert (health["role"], health["worker"]) == ("standby", platform.node())
    answer, refused = readiness(two), two.call("GET", "/builders")
    assert (answer.status_code, answer.json()["data"]["role"]) == (503, "standby")
    assert (refused.status_code, int(refused.headers["retry-after"]) > 0) == (503, True)
    assert "stands by for the service on" in refused.json()["message"]
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"http://127.0.0.1:{two.preview_port}/", timeout=5, **PLAIN)
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
    two.start()
    data = two.wait_status(uuid, "running")
    for builder in (data, kept):
        two.wait_served(builder)
        assert two.visit(builder).text == "hello"
        two.call("DELETE", f"/builders/{builder['uuid']}?purge=true")


def test_redeploy_that_kills_two_services_is_finished_once(services: Services) -> None:
    one, two = services.one, services.two
    services.stand_by(one)
    two.terminate()
    wait_working(one)
    kept: dict[str, Any] = one.create("kept")
    assert scenarios.run(one, kept["uuid"], "echo before > note; sync note") == (0, "")
    one.terminate()
    one.start("StopSandbox.begun")
    services.stand_by(two, "StartSandbox.done")
    changed = body("kept", TINY_APP.replace(".encode()", ".upper().encode()"))
    with contextlib.suppress(httpx.TransportError):
        one.call("PUT", f"/builders/{kept['uuid']}", headers={"Prefer": "respond-async"}, json=changed)
    one.wait_dead()
    two.wait_dead()
    assert [service.process.returncode for service in (one, two) if service.process] == [-9, -9], two.log_tail()
    two.start()
    until(lambda: two.visit(kept).text == "HELLO")
    until(lambda: two.builder(kept["uuid"])["version"] == 2)
    found = two.call("GET", f"/builders/{kept['uuid']}/versions").json()["data"]
    assert [(one["version"], one["current"]) for one in found] == [(2, True), (1, False)]
    assert scenarios.run(two, kept["uuid"], "cat note") == (0, "before\n")
    # One app runs, and no disk but its own is left.
    until(lambda: len([one for one in apps(services.cluster) if one["status"] == "Running"]) == 1)
    until(lambda: len(volumes(services.cluster)) == 1)


def test_service_that_ends_in_order_is_continued_at_once_with_its_code(services: Services) -> None:
    one, two = services.one, services.two
    data = two.create("moved")
    changed = body("moved", TINY_APP.replace(".encode()", ".upper().encode()"))
    assert two.call("PUT", f"/builders/{data['uuid']}", json=changed).status_code == 200
    assert two.visit(data).text == "HELLO"
    services.stand_by(one)
    with Asking(lambda: one.call("GET", "/builders")) as calls, Asking(lambda: one.visit(data)) as visits:
        began = time.monotonic()
        two.terminate()
        wait_working(one)
        one.wait_served(data)
        seconds = time.monotonic() - began
        time.sleep(1)
    print(f"continued after {seconds:.1f} s; calls: {calls.described()}; visits: {visits.described()}")  # noqa: T201
    # Only the database has the code of a version that the other service received.
    back = one.call("POST", f"/builders/{data['uuid']}/rollback", json={"version": 1})
    assert back.status_code == 200, back.text
    assert one.visit(data).text == "hello"
    services.stand_by(two)


def test_killed_service_is_continued_while_clients_ask_the_standby(services: Services) -> None:
    one, two = services.one, services.two
    data = one.create("watched")
    content = random.Random(1).randbytes(3_000_000)
    place = one.call("POST", "/uploads", json={"sha256": hashlib.sha256(content).hexdigest()}).json()["data"]
    assert put_part(one, place, content, 0, 1_500_000) == {"received": 1_500_000, "complete": False}
    with Asking(lambda: two.call("GET", "/builders")) as calls, Asking(lambda: two.visit(data)) as visits:
        began = time.monotonic()
        one.kill()
        wait_working(two)
        two.wait_served(data)
        seconds = time.monotonic() - began
        time.sleep(1)
    print(f"continued after {seconds:.1f} s; calls: {calls.described()}; visits: {visits.described()}")  # noqa: T201
    services.stand_by(one)
    assert two.visit(data).text == "hello"
    # The service that was killed had received it.
    assert put_part(two, place, content, 1_500_000, len(content)) == {"received": len(content), "complete": True}


def put_part(service: LiveService, place: dict[str, str], content: bytes, start: int, end: int) -> dict[str, object]:
    """Send a part of an upload, as the service's own count says; return how far it is then."""
    target = urlsplit(place["upload_url"])
    url = f"{service.url}{target.path}?{target.query}"
    assert httpx.get(url, timeout=PATIENCE, **PLAIN).json()["data"]["received"] == start
    headers = {"Content-Range": f"bytes {start}-{end - 1}/{len(content)}"}
    state = httpx.put(url, content=content[start:end], headers=headers, timeout=PATIENCE, **PLAIN).json()["data"]
    return {name: state[name] for name in ("received", "complete")}


def wait_working(service: LiveService) -> None:
    deadline = time.monotonic() + PATIENCE
    while True:
        with contextlib.suppress(httpx.TransportError):
            found = readiness(service)
            if found.status_code == 200 and found.json()["data"]["role"] == "working":
                return
        assert time.monotonic() < deadline, service.log_tail()
        time.sleep(0.1)
