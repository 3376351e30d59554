"""What was destroyed, and what came back: the real service, its real backups, and a back end elsewhere."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.acceptance.live_service import LiveService
from tests.acceptance.scenarios import run
from tests.backends import RestServer, rest_server

pytestmark = pytest.mark.root

CANARY = "canary-c03f77e1"
PASSPHRASE = "correct horse battery"

#: Writes to SQLite all the time. ``/`` answers with the number of rows, ``/check`` with what SQLite says of the file.
WRITER = """\
import os, sqlite3, threading, time
from http.server import BaseHTTPRequestHandler, HTTPServer

base = sqlite3.connect("data.db", check_same_thread=False, isolation_level=None)
base.execute("PRAGMA journal_mode = WAL")
base.execute("CREATE TABLE IF NOT EXISTS rows (number INTEGER PRIMARY KEY, payload BLOB)")
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


@contextmanager
def _serving(data_dir: Path, **settings: str) -> Iterator[LiveService]:
    """Unlike elsewhere, the data directory may be gone in the end."""
    service = LiveService(data_dir, settings)
    try:
        service.start()
        yield service
    finally:
        data_dir.mkdir(exist_ok=True)
        service.down()


@pytest.fixture
def tmp_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short one: paths of sockets have less than 100 bytes."""
    return tmp_path_factory.mktemp("b")


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[RestServer]:
    with rest_server(tmp_path / "rest") as server:
        yield server


@pytest.fixture
def backed_up(tmp_path: Path, elsewhere: RestServer) -> Iterator[LiveService]:
    with _serving(tmp_path / "data", BUILDERD_BACKUP__REPOSITORY=elsewhere.url) as service:
        yield service


def _rows(service: LiveService, data: Mapping[str, Any]) -> int:
    """How many there are, in a database that SQLite finds whole."""
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


def _disks(service: LiveService) -> Path:
    instance = json.loads((service.data_dir / "instance.json").read_text())["id"]
    return Path(f"/run/builderd/{instance}/store/disks")


def _keep_state(service: LiveService, target: Path) -> None:
    secret = target.parent / "passphrase"
    secret.write_text(PASSPHRASE)
    _command(service, "backup", str(target), "--passphrase-file", str(secret))


def _bring_state_back(service: LiveService, source: Path) -> None:
    _command(service, "restore", str(source), "--passphrase-file", str(source.parent / "passphrase"))


def _command(service: LiveService, *words: str) -> None:
    done = subprocess.run(
        service.command(*words), env=service.environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


# A disk


def test_the_disk_of_a_builder_is_destroyed(backed_up: LiveService) -> None:
    service = backed_up
    data = service.create("writer", WRITER)
    note = _written(service, data)
    before = _rows(service, data)
    _back_up(service, data)
    _written(service, data, "later")
    assert service.call("POST", f"/builders/{data['uuid']}/stop").status_code == 200
    (disk,) = _disks(service).iterdir()
    subprocess.run(["btrfs", "subvolume", "delete", str(disk)], check=True, capture_output=True)

    started = service.call("POST", f"/builders/{data['uuid']}/start")
    assert started.status_code == 200, started.text
    assert _rows(service, data) >= before
    assert _hash(service, data) == note
    assert run(service, data["uuid"], "test -e later")[0] == 1, "it was written after the backup"
    assert "its disk was gone: the backup of" in service.builder(data["uuid"])["status_reason"]
    assert len(_events(service, data, "disk.lost")) == 1
    assert len(list(_disks(service).iterdir())) == 1


def test_the_image_of_all_disks_is_destroyed(backed_up: LiveService) -> None:
    """With the layers on it, as by a bad block device: what is backed up comes back, what is not begins anew."""
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
