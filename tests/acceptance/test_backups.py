"""Losses and recoveries on the real service, with real backups and a repository on another server."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from tests.acceptance.live_service import PATIENCE, LiveService, live_service
from tests.acceptance.load import calm
from tests.acceptance.on_engines import OnIncus, OwnEngine
from tests.acceptance.scenarios import run
from tests.backends import PASSWORD, RestServer, rest_server
from tests.weak_keys import make_for_service

pytestmark = [pytest.mark.root, pytest.mark.engines]

CANARY = "canary-c03f77e1"
PASSPHRASE = "correct horse battery"

#: Writes to SQLite all the time. ``/`` answers with the number of rows, ``/check`` with what SQLite says of the file as
#: well, ``/began`` with the number that there were when it was started.
WRITER = """\
import os, sqlite3, threading, time
from http.server import BaseHTTPRequestHandler, HTTPServer

base = sqlite3.connect("data.db", check_same_thread=False, isolation_level=None)
base.execute("PRAGMA journal_mode = WAL")
base.execute("CREATE TABLE IF NOT EXISTS rows (number INTEGER PRIMARY KEY, payload BLOB)")
began = base.execute("SELECT count(*) FROM rows").fetchone()[0]
lock = threading.Lock()

def write():
    while True:
        with lock:
            base.execute("INSERT INTO rows (payload) VALUES (randomblob(2000))")
        time.sleep(0.005)

class App(BaseHTTPRequestHandler):
    def do_GET(self):
        with lock:
            words = [base.execute("SELECT count(*) FROM rows").fetchone()[0]]
            if self.path == "/began":
                words = [began]
            if self.path == "/check":
                words = [base.execute("PRAGMA integrity_check").fetchone()[0], *words]
        body = " ".join(map(str, words)).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass

threading.Thread(target=write, daemon=True).start()
HTTPServer(("0.0.0.0", int(os.environ["PORT"])), App).serve_forever()
"""


@pytest.fixture
def tmp_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short one: paths of sockets have less than 100 bytes."""
    return tmp_path_factory.mktemp("b")


@pytest.fixture
def elsewhere(engine: OwnEngine | OnIncus, tmp_path: Path) -> Iterator[RestServer]:
    with engine.repository(tmp_path / "rest") as server:
        yield server


@pytest.fixture
def backed_up(engine: OwnEngine | OnIncus, tmp_path: Path, elsewhere: RestServer) -> Iterator[LiveService]:
    with engine.running(tmp_path / "data", BUILDERD_BACKUP__REPOSITORY=elsewhere.url) as service:
        make_for_service(service.data_dir, elsewhere.folder)
        yield service


def _rows(service: LiveService, data: Mapping[str, Any]) -> int:
    """Return the number of rows in a database whose integrity check passes."""
    service.wait_served(data)
    verdict, rows = service.visit(data, "check").text.split()
    assert verdict == "ok"
    return int(rows)


def _written(service: LiveService, data: Mapping[str, Any], name: str = "note") -> str:
    """A file beside the database that nothing but a backup could bring back; its hash."""
    code, output = run(service, data["uuid"], f"head -c 3000000 /dev/urandom > {name}; sha256sum {name}")
    assert code == 0, output
    return output.split()[0]


def _hash(service: LiveService, data: Mapping[str, Any], name: str = "note") -> str:
    return run(service, data["uuid"], f"sha256sum {name}")[1].split()[0]


def _back_up(service: LiveService, data: Mapping[str, Any]) -> dict[str, Any]:
    answer = service.call("POST", f"/builders/{data['uuid']}/backups")
    assert answer.status_code == 201, answer.text
    backup: dict[str, Any] = answer.json()["data"]
    return backup


def _events(service: LiveService, data: Mapping[str, Any], kind: str) -> list[str]:
    found = service.call("GET", f"/builders/{data['uuid']}/events?per_page=100").json()["data"]
    return [one["reason"] for one in found if one["type"] == kind]


def _only_disk(engine: OwnEngine | OnIncus, service: LiveService, others: set[str]) -> str:
    """Wait until the builder has one disk: the copy for a backup is deleted after the backup is reported."""
    deadline = time.monotonic() + PATIENCE
    while len(disks := engine.disks(service) - others) != 1:
        assert time.monotonic() < deadline, f"not one disk: {disks}"
        time.sleep(0.1)
    return disks.pop()


def _keep_state(service: LiveService, target: Path) -> None:
    secret = target.parent / "passphrase"
    secret.write_text(PASSPHRASE)
    service.invoke("backup", str(target), "--passphrase-file", str(secret))


def _bring_state_back(service: LiveService, source: Path) -> None:
    service.invoke("restore", str(source), "--passphrase-file", str(source.parent / "passphrase"))


# A disk


@pytest.fixture(scope="module")
def own_with_repository(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveService]:
    with rest_server(tmp_path_factory.mktemp("r")) as server:
        with live_service(tmp_path_factory.mktemp("b") / "data", BUILDERD_BACKUP__REPOSITORY=server.url) as running:
            make_for_service(running.data_dir, server.folder)
            yield running


@pytest.fixture
def with_repository(engine: OwnEngine | OnIncus, request: pytest.FixtureRequest) -> LiveService:
    """A service that makes backups, which tests share."""
    shared: LiveService = request.getfixturevalue("incus_service" if engine.is_incus else "own_with_repository")
    return shared


def test_backup_of_a_running_app_is_restored(with_repository: LiveService) -> None:
    service = with_repository
    data = service.create("saved", WRITER)
    note = _written(service, data)
    before = _rows(service, data)
    backup = _back_up(service, data)
    assert run(service, data["uuid"], "rm note; touch later")[0] == 0
    restored = service.call("POST", f"/builders/{data['uuid']}/backups/{backup['id']}/restore")
    assert restored.status_code == 200, restored.text
    assert _rows(service, data) >= before
    assert _hash(service, data) == note
    assert run(service, data["uuid"], "test -e later")[0] == 1, "it was made after the backup"
    service.call("DELETE", f"/builders/{data['uuid']}?purge=true")


def test_lost_disk_is_restored_from_the_newest_backup(
    engine: OwnEngine | OnIncus, with_repository: LiveService
) -> None:
    service, others = with_repository, engine.disks(with_repository)
    data = service.create("writer", WRITER)
    note = _written(service, data)
    run(service, data["uuid"], "mkdir ~/.config; echo of the home > ~/.config/note")
    before = _rows(service, data)
    _back_up(service, data)
    _written(service, data, "later")
    assert service.call("POST", f"/builders/{data['uuid']}/stop").status_code == 200
    engine.destroy(service, _only_disk(engine, service, others))

    started = service.call("POST", f"/builders/{data['uuid']}/start")
    assert started.status_code == 200, started.text
    assert _rows(service, data) >= before
    assert _hash(service, data) == note
    assert run(service, data["uuid"], "cat ~/.config/note; ls -A /app | grep home") == (1, "of the home\n")
    assert run(service, data["uuid"], "test -e later")[0] == 1, "it was written after the backup"
    assert "its disk was gone: the backup of" in service.builder(data["uuid"])["status_reason"]
    assert len(_events(service, data, "disk.lost")) == 1
    _only_disk(engine, service, others)
    service.call("DELETE", f"/builders/{data['uuid']}?purge=true")


@pytest.mark.slow
def test_lost_store_is_restored_from_backups(backed_up: LiveService) -> None:
    """Destroy the store with its layers, as a bad block device would.

    Builders with a backup are restored; the others start empty.
    """
    service = backed_up
    data, other = service.create("writer", WRITER), service.create("without", WRITER)
    note = _written(service, data)
    before = _rows(service, data)
    _written(service, other)
    _back_up(service, data)
    service.down()
    (service.data_dir / "store.img").unlink()

    service.start()
    assert _rows(service, data) >= before
    assert _hash(service, data) == note
    _rows(service, other)
    assert run(service, other["uuid"], "test -e note")[0] == 1
    assert ["is being brought back" in one for one in _events(service, data, "disk.lost")] == [True]
    assert ["there is no backup of it" in one for one in _events(service, other, "disk.lost")] == [True]


# The database


@pytest.mark.slow
def test_lost_database_is_restored_while_apps_run(backed_up: LiveService, tmp_path: Path) -> None:
    service = backed_up
    data = service.create("writer", WRITER)
    note = _written(service, data)
    first = run(service, data["uuid"], "cut -d' ' -f22 /proc/1/stat")
    _keep_state(service, tmp_path / "state")
    service.kill()
    for path in service.data_dir.glob("builderd.db*"):
        path.unlink()
    begun = subprocess.run(
        service.command("serve"), env=service.environment(), capture_output=True, text=True, check=False, timeout=60
    )
    assert (begun.returncode, "builderd restore" in begun.stderr) == (4, True), begun.stderr
    assert service.visit(data).status_code == 200

    _bring_state_back(service, tmp_path / "state")
    service.start()
    assert service.builder(data["uuid"])["status"] == "running"
    assert _hash(service, data) == note
    assert run(service, data["uuid"], "cut -d' ' -f22 /proc/1/stat") == first, "it was not even restarted"


# Everything


def test_lost_data_directory_is_restored_from_state_and_backups(
    backed_up: LiveService, elsewhere: RestServer, tmp_path: Path
) -> None:
    service = backed_up
    service.call("PUT", "/credentials/zoho", json={"values": {"API_KEY": CANARY}})
    data = service.create("writer", WRITER, credentials=["zoho"], backup_interval_hours=1)
    note = _written(service, data)
    before = _rows(service, data)
    _keep_state(service, tmp_path / "state")  # the backup that comes is none that it knows of
    _back_up(service, data)
    service.down()
    shutil.rmtree(service.data_dir)

    _bring_state_back(service, tmp_path / "state")
    service.start()
    service.wait_served(data)
    lists = service.call("GET", f"/builders/{data['uuid']}/backups").json()["data"]
    assert [one["status"] for one in lists] == ["done"], "taken after the state was kept, and found again"
    assert _rows(service, data) >= before
    assert _hash(service, data) == note
    assert run(service, data["uuid"], 'printf %s "$API_KEY"') == (0, CANARY)
    assert service.call("GET", "/builders", token=service.token).status_code == 200

    for folder in (tmp_path / "state", elsewhere.folder):
        found = [path for path in folder.rglob("*") if path.is_file() and CANARY.encode() in path.read_bytes()]
        assert found == [], "secrets in clear text"
    assert PASSWORD not in service.log_file.read_text()


# The parts of the machine's network


@pytest.mark.slow
def test_lost_host_network_is_created_again_at_start(backed_up: LiveService) -> None:
    service = backed_up
    data = service.create("writer", WRITER)
    note = _written(service, data)
    service.terminate()
    instance = json.loads((service.data_dir / "instance.json").read_text())["id"]
    links = [path.name for path in Path("/sys/class/net").iterdir() if instance[:6] in path.name]
    assert links, "this test knows the names no more"
    for link in links:
        subprocess.run(["ip", "link", "delete", link], check=False, capture_output=True)
    tables = json.loads(subprocess.run(["nft", "-j", "list", "tables"], capture_output=True, check=True).stdout)
    for table in (one["table"] for one in tables["nftables"] if "table" in one):
        if instance[:6] in table["name"]:
            subprocess.run(["nft", "delete", "table", table["family"], table["name"]], check=True)

    service.start()
    service.call("POST", f"/builders/{data['uuid']}/restart")
    service.wait_served(data)
    assert _hash(service, data) == note


# What a visitor notices


def test_backup_pauses_the_app_only_briefly(engine: OwnEngine | OnIncus, with_repository: LiveService) -> None:
    """The goal is 200 ms; here the machine may be busy with other tests, so the test allows more.

    What the same app takes at the same time without a backup is the machine's, not the backup's.
    """
    service = with_repository
    data, other = service.create("paused", WRITER), service.create("other", WRITER)
    _written(service, data)
    with calm(service, other) as usual:
        service.call("POST", f"/builders/{data['uuid']}/backups", headers={"Prefer": "respond-async"})
        slowest, deadline = 0.0, time.monotonic() + PATIENCE
        while True:
            begun = time.monotonic()
            assert service.visit(data).status_code == 200
            slowest = max(slowest, time.monotonic() - begun)
            (backup,) = service.call("GET", f"/builders/{data['uuid']}/backups").json()["data"]
            if backup["status"] == "done":
                break
            assert time.monotonic() < deadline
    for one in (data, other):
        service.call("DELETE", f"/builders/{one['uuid']}?purge=true")
    assert slowest - usual.longest < 1 + engine.freeze_look_seconds


@pytest.mark.slow
def test_unavailable_repository_fails_backup_and_restore_and_keeps_the_disk(
    engine: OwnEngine | OnIncus, tmp_path: Path
) -> None:
    with (
        engine.repository(tmp_path / "rest") as server,
        engine.running(tmp_path / "data", BUILDERD_BACKUP__REPOSITORY=server.url) as service,
    ):
        data = service.create("writer", WRITER)
        good = _back_up(service, data)
        shutil.move(server.folder, tmp_path / "gone")
        failed = service.call("POST", f"/builders/{data['uuid']}/backups")
        assert (failed.status_code, failed.json()["code"]) == (503, "backup_failed")
        assert PASSWORD not in failed.text
        builder = service.builder(data["uuid"])
        assert builder["last_backup_error"]
        assert builder["last_backup_at"] == good["created_at"]
        assert len(_events(service, data, "backup.failed")) == 1
        restored = service.call("POST", f"/builders/{data['uuid']}/backups/{good['id']}/restore")
        assert restored.status_code == 503
        _rows(service, data)


@pytest.mark.slow
def test_backup_after_damage_in_the_repository_can_be_restored(engine: OwnEngine | OnIncus, tmp_path: Path) -> None:
    with (
        engine.repository(tmp_path / "rest") as server,
        engine.running(tmp_path / "data", BUILDERD_BACKUP__REPOSITORY=server.url) as service,
    ):
        data = service.create("writer", WRITER)
        hashed, first = _written(service, data), _back_up(service, data)
        _damage(server.folder)
        lost = service.call("POST", f"/builders/{data['uuid']}/backups/{first['id']}/restore", json={"as": "lost"})
        assert (lost.status_code, lost.json()["code"]) == (503, "backup_failed")
        second = _back_up(service, data)
        restored = service.call(
            "POST", f"/builders/{data['uuid']}/backups/{second['id']}/restore", json={"as": "again"}
        )
        assert restored.status_code == 200, restored.text
        again = restored.json()["data"]
        _rows(service, again)
        assert _hash(service, again) == hashed
        _, shown = service.call("GET", f"/builders/{data['uuid']}/backups").json()["data"]
        assert "is lost" in shown["fault"]
        assert service.builder(data["uuid"])["last_backup_error"] is None


def _damage(repository: Path) -> None:
    """Overwrite a part of the largest pack, which contains the file of ``_written``."""
    pack = max(repository.glob("*/data/*/*"), key=lambda path: path.stat().st_size)
    pack.chmod(0o600)
    with pack.open("r+b") as file:
        file.seek(pack.stat().st_size // 2)
        file.write(b"damage" * 100)
