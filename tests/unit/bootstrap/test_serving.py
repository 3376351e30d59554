"""A service that starts listens before what costs most of the start is imported, and notifies its supervisor."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import SecretStr
from tests.previews.proxy import free_port

from builderd.bootstrap.data_directory import lock
from builderd.bootstrap.run import take_down
from builderd.bootstrap.serving import Supervisor
from builderd.bootstrap.tokens import page_url
from builderd.settings import BackupSettings, ReviewSettings, Settings, VaultSettings

#: Imported while calls wait: each costs at least a tenth of what the process has done until it listens.
LATER = (
    *("acme", "alembic", "asyncssh", "cryptography", "dns", "fastapi", "httpx", "jinja2", "josepy", "mcp", "nacl"),
    *("playwright", "prometheus_client", "psycopg", "re2", "requests", "sqlalchemy", "yaml", "yara", "zstandard"),
    *("builderd.engine.oci", "builderd.database", "builderd.server.app", "builderd.builders.api"),
    *("builderd.client", "builderd.mcp", "builderd.reconciler.worker", "builderd.ssh", "builderd.web"),
)
#: Runs ``serve`` with another rest of the service, which asks over the network how things are before it is there.
PROGRAM = """
import asyncio, sys
from pathlib import Path
import builderd.cli.serve
from builderd.bootstrap import serving
from builderd.settings import Settings
from starlette.responses import PlainTextResponse

class Rest:
    async def run(self, settings, supervisor, servers, port, **owning):
        early = await get("/healthz")
        print(*sys.modules)
        waiting = asyncio.create_task(get("/api/v1/builders"))
        while not port._decided._waiters:
            await asyncio.sleep(0)
        port.open(PlainTextResponse("the rest"))
        print(early[0], (await waiting)[-1], sep="; ")

async def get(path):
    reader, writer = await asyncio.open_connection("127.0.0.1", PORT)
    writer.write(f"GET {path} HTTP/1.1\\r\\nHost: x\\r\\nConnection: close\\r\\n\\r\\n".encode())
    answer = (await reader.read()).decode().splitlines()
    writer.close()
    return answer

PORT = int(sys.argv[2])
serving.import_module = lambda name: Rest()
serving.serve(Settings(data_dir=Path(sys.argv[1]), port=PORT))
"""


def test_sign_in_links_lead_where_the_service_of_the_directory_listens(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path, port=1000)
    with lock(tmp_path, "http://127.0.0.1:2000"):
        assert page_url(settings) == "http://127.0.0.1:2000"
    assert page_url(settings) == "http://127.0.0.1:1000"


def test_health_is_answered_before_the_rest_is_imported_and_calls_wait_for_it(tmp_path: Path) -> None:
    argv = [sys.executable, "-c", PROGRAM, str(tmp_path / "data"), str(free_port())]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    modules, answers = done.stdout.splitlines()
    assert not set(modules.split()).intersection(LATER)
    assert answers == "HTTP/1.1 200 OK; the rest"


@pytest.mark.parametrize("abstract", [False, True])
def test_supervisor_is_notified_at_its_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, abstract: bool) -> None:
    name = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as hears:
        hears.bind(f"\0{name}" if abstract else name)
        hears.settimeout(10)
        monkeypatch.setenv("NOTIFY_SOCKET", f"@{name}" if abstract else name)
        supervisor = Supervisor()
        assert "NOTIFY_SOCKET" not in os.environ
        supervisor.ready()
        assert hears.recv(100) == b"READY=1"


def test_missing_supervisor_socket_does_not_end_the_service(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "gone"))
    Supervisor().ready()
    assert "supervisor not notified" in caplog.text


def test_missing_data_directory_is_reported(tmp_path: Path) -> None:
    said: list[str] = []
    asyncio.run(take_down(Settings(data_dir=tmp_path / "none"), said.append))
    assert said == [f"There is no builderd in {tmp_path / 'none'}: nothing to stop."]
    assert list(tmp_path.iterdir()) == []


def test_neither_database_nor_keys_nor_files_of_the_operator_are_needed(tmp_path: Path) -> None:
    (tmp_path / "service.lock").touch()
    broken = Settings(
        data_dir=tmp_path,
        database_url="postgresql://builderd@127.0.0.1:1/builderd",
        review=ReviewSettings(policy=tmp_path / "none.yaml"),
        backup=BackupSettings(ssh_key=tmp_path / "none"),
        vault=VaultSettings(key=SecretStr("no key")),
    )
    said: list[str] = []
    asyncio.run(take_down(broken, said.append))
    assert said[-1].startswith("Everything is stopped.")
