"""A service that starts listens, and answers ``/healthz``, before what costs most of the start is imported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.previews.proxy import free_port

#: Imported while calls wait: each costs at least a tenth of what the process has done until it listens.
LATER = (
    *("acme", "alembic", "asyncssh", "cryptography", "dns", "fastapi", "httpx", "jinja2", "josepy", "mcp", "nacl"),
    *("playwright", "prometheus_client", "psycopg", "re2", "requests", "sqlalchemy", "yaml", "yara", "zstandard"),
    *("builderd.adapters.engines", "builderd.store", "builderd.api.app", "builderd.api.v1"),
    *("builderd.client", "builderd.mcp", "builderd.reconciler", "builderd.ssh", "builderd.web"),
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
serving._import_service = Rest
serving.serve(Settings(data_dir=Path(sys.argv[1]), port=PORT))
"""


def test_health_is_answered_before_the_rest_is_imported_and_calls_wait_for_it(tmp_path: Path) -> None:
    argv = [sys.executable, "-c", PROGRAM, str(tmp_path / "data"), str(free_port())]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    modules, answers = done.stdout.splitlines()
    assert not set(modules.split()).intersection(LATER)
    assert answers == "HTTP/1.1 200 OK; the rest"
