"""Two services on one cluster and one PostgreSQL: the standby passes all calls and visitors on to the one that works.

Each continues what the other one was killed in the middle of.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import random
import shlex
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import psycopg
import pytest
from tests.acceptance.live_service import PATIENCE, PLAIN, TINY_APP, LiveService, body, free_port
from tests.acceptance.scenarios import run
from tests.incus import IncusCluster, running_cluster
from tests.postgres import PostgresServer
from websockets.sync.client import connect

from builderd.adapters.previews.haproxy.receiving import SECRET_FIELD, SERVICE_FIELD
from builderd.bootstrap.instance import this_instance
from builderd.bootstrap.membership import make_membership
from builderd.operations import proxy_header
from builderd.settings import Settings

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
        self.members_port = free_port()
        self.one, self.two = (
            LiveService(folder / name, {**settings, "BUILDERD_MEMBERS_PORT": str(port)}, cold=True)
            for name, port in (("one", self.members_port), ("two", free_port()))
        )

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


SENDER_APP = TINY_APP.replace(
    'os.environ.get("GREETING", "hello")', '(self.headers["X-Forwarded-For"] + " " + self.headers["Host"])'
)


def test_a_service_without_the_keys_is_refused_and_one_with_them_stands_by(services: Services) -> None:
    one, two = services.one, services.two
    one.start()
    with pytest.raises(AssertionError, match="the service ended with 4"):
        two.start()
    assert f"{one.data_dir}/vault.key {two.data_dir}/vault.key" in two.log_tail()
    share_keys(one, two)
    services.stand_by(two)
    two.wait_ready()
    health = httpx.get(f"{two.url}/healthz", timeout=5, **PLAIN).json()["data"]
    assert (health["role"], health["way"]["ready"]) == ("standby", True)


def test_calls_visits_logins_and_uploads_go_through_the_standby(services: Services, tmp_path: Path) -> None:
    one, two = services.one, services.two
    data = two.create("through", SENDER_APP)
    uuid = data["uuid"]
    with httpx.Client(transport=httpx.HTTPTransport(local_address="127.0.0.77"), trust_env=False) as client:
        host = data["preview_url"].split("/")[2]
        seen = client.get(f"http://127.0.0.1:{two.preview_port}/", headers={"Host": host}, timeout=PATIENCE).text
    assert seen == f"127.0.0.77 {host}"
    assert run(two, uuid, "echo $((6 * 7))") == (0, "42\n")
    url = f"ws://127.0.0.1:{two.port}/api/v1/builders/{uuid}/terminal?command=cat"
    with connect(url, additional_headers={"Authorization": f"Bearer {two.token}"}, open_timeout=PATIENCE) as terminal:
        terminal.send(b"typed\n")
        received = b""
        while b"typed" not in received:
            received += terminal.recv(PATIENCE)  # type: ignore[operator]
    assert log_in(two, uuid, tmp_path, "echo $((5 * 5))") == (0, b"25\n")
    content = bytes(range(256)) * 4096
    upload = two.call("POST", "/uploads", json={"size": len(content)})
    assert upload.status_code == 201, upload.text
    target = urlsplit(upload.json()["data"]["upload_url"])
    put = f"{two.url}{target.path}?{target.query}"
    assert httpx.put(put, content=content, timeout=PATIENCE, **PLAIN).status_code in (200, 201, 204)
    assert one.builder(uuid)["status"] == "running"


def test_wrong_tokens_of_an_address_count_once_by_whichever_service_they_come(services: Services) -> None:
    one, two = services.one, services.two

    def guess(service: LiveService, number: int) -> int:
        headers = {"Authorization": f"Bearer bd_{service.port}-{number}"}
        return httpx.get(f"{service.url}/api/v1/builders", headers=headers, timeout=PATIENCE, **PLAIN).status_code

    # 60 a minute of one address: neither service alone has seen so many.
    assert {guess(one, number) for number in range(45)} == {401}
    assert 429 in {guess(two, number) for number in range(45)}
    assert one.call("GET", "/builders").status_code == two.call("GET", "/builders").status_code == 200


def log_in(service: LiveService, uuid: str, folder: Path, command: str) -> tuple[int, bytes]:
    """Run a command by SSH at this service's port, with the host key that the API named."""
    grant = service.call("POST", f"/builders/{uuid}/ssh", json={}).json()["data"]
    known_hosts = folder / "known_hosts"
    known_hosts.write_text(grant["known_hosts"].replace(str(grant["port"]), str(service.ssh_port)) + "\n")
    options = ["-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=yes", "-o", f"UserKnownHostsFile={known_hosts}"]
    words = ["ssh", "-F", "/dev/null", *options, "-p", str(service.ssh_port), f"{grant['token']}@127.0.0.1", command]
    done = subprocess.run(words, capture_output=True, check=False, timeout=PATIENCE)
    return done.returncode, done.stdout


#: Sends a file's bytes to an address, and prints what comes back; "closed" where nothing does.
KNOCK = """import base64, socket, sys
try:
    caller = socket.create_connection((sys.argv[1], int(sys.argv[2])), 5)
    caller.sendall(base64.b64decode(sys.argv[3]))
    print(caller.recv(1000)[:12].decode() or "closed")
except OSError as error:
    print("closed")
"""


def test_nobody_but_a_member_with_the_secret_passes_anything_on(services: Services) -> None:
    """The port for members takes a header only with the cluster's secret, and only from a member's address."""
    one, cluster = services.one, services.cluster
    builder = one.create("attacker")["uuid"]
    settings = Settings(data_dir=one.data_dir, engine="incus", database_url="postgresql://unused")
    membership = make_membership(settings, this_instance(settings))
    assert membership is not None
    asked = b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"

    def knock(member: int, secret: str) -> str:
        header = proxy_header.build(("203.0.113.9", 1), {SECRET_FIELD: secret, SERVICE_FIELD: "api"})
        words = ("10.98.0.11", str(services.members_port), base64.b64encode(header + asked).decode())
        return cluster.run("exec", str(member), "python3", "-c", KNOCK, *words).stdout.strip()

    assert knock(1, membership.secret()) == "HTTP/1.1 200"
    assert knock(1, "0" * 64) == "closed"
    assert knock(0, membership.secret()) == "closed", "another machine on the members' network"
    reached = f"python3 -c {shlex.quote(KNOCK)} {{}} {services.members_port} {base64.b64encode(asked).decode()}"
    for address in ("10.98.0.11", "10.99.0.1"):
        assert run(one, builder, reached.format(address)) == (0, "closed\n")


def test_standby_whose_way_is_cut_off_says_so_and_passes_visitors_on(services: Services) -> None:
    one, two = services.one, services.two
    data = one.create("visited")
    taken = one.data_dir / "previews/empty/papi.sock"
    taken.rename(taken.with_suffix(".away"))
    try:
        deadline = time.monotonic() + PATIENCE
        while (answer := readiness(two)).status_code == 200:
            assert time.monotonic() < deadline
            time.sleep(0.2)
        state = answer.json()["data"]
        assert (answer.status_code, state["role"], state["way"]["ready"]) == (503, "standby", False)
        assert int(answer.headers["retry-after"]) > 0
        while "passes nothing on" not in (asked := two.call("GET", "/builders")).json()["message"]:
            assert asked.status_code == 503
            assert time.monotonic() < deadline
        assert two.visit(data).text == "hello"
    finally:
        taken.with_suffix(".away").rename(taken)
    two.wait_ready()
    assert two.call("GET", "/builders").status_code == 200
    two.terminate()
    with pytest.raises(httpx.ConnectError):
        readiness(two)
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


def test_service_that_ends_in_order_is_continued_at_once_with_its_code(services: Services) -> None:
    one, two = services.one, services.two
    data = two.create("moved")
    changed = body("moved", TINY_APP.replace(".encode()", ".upper().encode()"))
    assert two.call("PUT", f"/builders/{data['uuid']}", json=changed).status_code == 200
    assert two.visit(data).text == "HELLO"
    services.stand_by(one)
    one.wait_ready()
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
    two.wait_ready()
    assert two.visit(data).text == "hello"


def test_killed_service_is_continued_while_clients_ask_the_standby(services: Services) -> None:
    one, two = services.one, services.two
    data = one.create("watched")
    content = random.Random(1).randbytes(3_000_000)
    place = one.call("POST", "/uploads", json={"sha256": hashlib.sha256(content).hexdigest()}).json()["data"]
    assert put_part(two, place, content, 0, 1_500_000) == {"received": 1_500_000, "complete": False}
    with Asking(lambda: two.call("GET", "/builders")) as calls, Asking(lambda: two.visit(data)) as visits:
        began = time.monotonic()
        one.kill()
        wait_working(two)
        two.wait_served(data)
        seconds = time.monotonic() - began
        time.sleep(1)
    print(f"continued after {seconds:.1f} s; calls: {calls.described()}; visits: {visits.described()}")  # noqa: T201
    services.stand_by(one)
    one.wait_ready()
    assert one.visit(data).text == "hello"
    # The service that was killed had received it.
    assert put_part(one, place, content, 1_500_000, len(content)) == {"received": len(content), "complete": True}


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
