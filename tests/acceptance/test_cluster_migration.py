"""All builders of one machine move to a cluster, by backups and the service's own state (docs/cluster.md)."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.acceptance import scenarios
from tests.acceptance.incus_members import until
from tests.acceptance.live_service import PATIENCE, PLAIN, TINY_APP, LiveService, body
from tests.backends import RestServer, rest_server
from tests.domains.parts import DnsServer
from tests.incus import IncusCluster, address_of, running_cluster
from tests.postgres import PostgresServer

pytestmark = [pytest.mark.root, pytest.mark.postgres, pytest.mark.haproxy, pytest.mark.slow]

DOMAIN = "shop.example.test"
SECRET = "canary-move-4417"
#: Answers with a credential's value, and counts its starts.
SECRET_APP = TINY_APP.replace('"GREETING", "hello"', '"API_KEY", "none"')
JOB = {"job_type": "one_time", "entrypoint": "echo run >> runs; cat runs"}


@pytest.fixture(scope="module")
def cluster() -> Iterator[IncusCluster]:
    with running_cluster(2) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def repository(cluster: IncusCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RestServer]:
    folder = tmp_path_factory.mktemp("r") / "rest"
    with rest_server(folder, address_of(1), cluster.network_of) as server:
        yield server


@pytest.fixture
def tmp_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short one: paths of sockets have less than 100 bytes."""
    return tmp_path_factory.mktemp("m")


@dataclass
class Old:
    """Records of the machine that is left, and the hashes of the files on each disk, by the name of the builder."""

    records: dict[str, dict[str, Any]] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)


def files_of(service: LiveService, uuid: str) -> str:
    """Return the hashes of all files that the app may see."""
    found = "find . -type f -not -path '*/__pycache__/*' | sort | xargs sha256sum"
    code, output = scenarios.run(service, uuid, found)
    assert code == 0, output
    return output


def make_builders(service: LiveService) -> Old:
    """Make apps with two versions, a domain, a credential and a token, a stopped one and a job."""
    old = Old()
    wanted = {"API_KEY": SECRET}
    assert service.call("PUT", "/credentials/mail", json={"values": wanted}).status_code in (200, 201)
    old.records["changed"] = service.create("changed", env={"GREETING": "changed"})
    changed = body("changed", TINY_APP.replace(".encode()", ".upper().encode()"), env={"GREETING": "changed"})
    assert service.call("PUT", f"/builders/{old.records['changed']['uuid']}", json=changed).status_code == 200
    old.records["shop"] = service.create("shop", env={"GREETING": "shop"})
    added = service.call("POST", f"/builders/{old.records['shop']['uuid']}/domains", json={"host": DOMAIN})
    assert added.status_code == 201, added.text
    until(lambda: visit_domain(service) == "shop")
    old.records["sealed"] = service.create("sealed", SECRET_APP, credentials=["mail"])
    old.records["private"] = service.create("private", visibility="private")
    old.records["stopped"] = service.create("stopped", env={"GREETING": "stopped"})
    for name, data in old.records.items():
        assert scenarios.run(service, data["uuid"], f"mkdir -p d; echo {name} > d/note; sync d/note") == (0, "")
        old.files[name] = files_of(service, data["uuid"])
    job = service.call("POST", "/builders", json={**body("job"), **JOB})
    assert job.status_code == 201, job.text
    old.records["job"] = service.wait_status(job.json()["data"]["uuid"], "completed")
    for data in old.records.values():
        taken = service.call("POST", f"/builders/{data['uuid']}/backups")
        assert taken.status_code == 201, taken.text
    answer = service.call("POST", f"/builders/{old.records['stopped']['uuid']}/stop")
    assert answer.json()["data"]["status"] == "stopped"
    old.records = {name: service.builder(data["uuid"]) for name, data in old.records.items()}
    return old


def visit_domain(service: LiveService) -> str:
    url, host = f"http://127.0.0.1:{service.preview_port}/", {"Host": DOMAIN}
    return httpx.get(url, headers=host, timeout=PATIENCE, **PLAIN).text


def run_command(service: LiveService, *words: str) -> None:
    """Run ``builderd`` of the service's folder and settings, as its operator does."""
    done = subprocess.run(
        service.command(*words), env=service.environment(), capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr


def assert_unchanged(service: LiveService, old: Old) -> None:
    """Assert that all builders are those of the machine that was left, with their names, addresses and settings."""
    listed = {one["name"]: one for one in service.call("GET", "/builders?per_page=100").json()["data"]}
    assert listed.keys() == old.records.keys()
    for name, before in old.records.items():
        now = service.builder(before["uuid"])
        kept = ("uuid", "name", "status", "preview_url", "service_token", "version", "visibility", "created_at")
        assert {key: now[key] for key in kept} == {key: before[key] for key in kept}, name
    assert scenarios.run(service, old.records["shop"]["uuid"], "true") == (0, "")
    (domain,) = service.call("GET", f"/builders/{old.records['shop']['uuid']}/domains").json()["data"]
    assert domain["host"] == DOMAIN


def assert_working(service: LiveService, old: Old) -> None:
    """Assert that apps answer as before, with their secrets and files; the stopped one once it is started."""
    records = old.records
    assert service.visit(records["changed"]).text == "CHANGED"
    assert visit_domain(service) == "shop"
    assert service.visit(records["sealed"]).text == SECRET
    assert service.visit(records["private"]).status_code == 401
    token = {"X-Service-Token": records["private"]["service_token"]}
    assert service.visit(records["private"], headers=token).text == "hello"
    assert service.visit(records["stopped"]).status_code == 503
    started = service.call("POST", f"/builders/{records['stopped']['uuid']}/start")
    assert started.status_code == 200, started.text
    assert service.visit(records["stopped"]).text == "stopped"
    for name, found in old.files.items():
        assert files_of(service, records[name]["uuid"]) == found, name


def assert_api_works(service: LiveService, old: Old) -> None:
    """Assert that old versions and backups are there, and that jobs, rollbacks and new backups work."""
    job, changed = (old.records[name]["uuid"] for name in ("job", "changed"))
    assert service.call("POST", f"/builders/{job}/start").status_code == 200
    service.wait_status(job, "completed")
    lines = [one["text"] for one in service.call("GET", f"/builders/{job}/logs").json()["data"]]
    assert lines[-2:] == ["run", "run"]
    back = service.call("POST", f"/builders/{changed}/rollback", json={"version": 1})
    assert back.status_code == 200, back.text
    assert service.visit(old.records["changed"]).text == "changed"
    taken = service.call("POST", f"/builders/{changed}/backups")
    assert taken.status_code == 201, taken.text
    backups = service.call("GET", f"/builders/{changed}/backups").json()["data"]
    assert {one["status"] for one in backups} == {"done"}
    assert len(backups) >= 2


def test_builders_of_one_machine_move_to_a_cluster(
    cluster: IncusCluster, repository: RestServer, postgres_server: PostgresServer, tmp_path: Path
) -> None:
    folder, secret, seconds = tmp_path / "state", tmp_path / "passphrase", dict[str, float]()
    secret.write_text("a passphrase of several words")
    with cluster.network_of(), postgres_server.database() as database:
        names = DnsServer()
        names.point(DOMAIN, "127.0.0.1")
        both = {
            "BUILDERD_BACKUP__REPOSITORY": repository.url,
            "BUILDERD_EGRESS__ALLOW": f"{address_of(1)}/32",
            "BUILDERD_ACME__RESOLVERS": names.address,
            "BUILDERD_ACME__ADDRESSES": "127.0.0.1",
        }
        # The machine that is left: in the network of a member, which is how it reaches the repository.
        left = LiveService(tmp_path / "old", both, cold=True)
        on_cluster = {
            "BUILDERD_ENGINE": "incus",
            "BUILDERD_INCUS__SOCKET": str(cluster.socket()),
            "BUILDERD_STORE__OVERCOMMIT": "20",
            "BUILDERD_DATABASE_URL": database,
        }
        new = LiveService(tmp_path / "new", {**both, **on_cluster}, left.port, left.preview_port, cold=True)
        try:
            try:
                left.start()
                old = make_builders(left)
            finally:
                left.down()
            begun = time.monotonic()
            run_command(left, "backup", str(folder), "--passphrase-file", str(secret))
            seconds["state backed up"] = time.monotonic() - begun
            begun = time.monotonic()
            run_command(new, "restore", str(folder), "--passphrase-file", str(secret))
            seconds["state restored"] = time.monotonic() - begun
            new.token = left.token
            begun = time.monotonic()
            new.start()
            seconds["ready, with its image made"] = time.monotonic() - begun
            for name in ("changed", "shop", "sealed"):
                new.wait_served(old.records[name])
            until(lambda: all(new.builder(one["uuid"])["status"] == one["status"] for one in old.records.values()))
            seconds["all served"] = time.monotonic() - begun
            assert_unchanged(new, old)
            assert_working(new, old)
            assert_api_works(new, old)
            assert (new.data_dir / "ssh_host_key").read_bytes() == (left.data_dir / "ssh_host_key").read_bytes()
            members = {new.builder(one["uuid"])["member"] for one in old.records.values()}
            assert members == {"node1", "node2"}
            for data in old.records.values():
                assert new.call("DELETE", f"/builders/{data['uuid']}?purge=true").status_code == 200
        finally:
            new.data_dir.mkdir(exist_ok=True)
            new.down()
            names.close()
    sys.stderr.write(f"moved to a cluster: seconds { ({name: round(one, 1) for name, one in seconds.items()}) }\n")
