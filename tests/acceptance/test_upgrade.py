"""An upgrade: the new service migrates an old database, and adopts the apps that went on meanwhile."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from tests.acceptance.live_service import live_service
from tests.upgrades import old_schema

from builderd.store.migrations import revisions

pytestmark = pytest.mark.root

#: Answers with what it drew when it began: another answer is from another process.
BORN = """\
import os, uuid
from http.server import BaseHTTPRequestHandler, HTTPServer

born = uuid.uuid4().hex.encode()

class App(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", str(len(born)))
        self.end_headers()
        self.wfile.write(born)

HTTPServer(("0.0.0.0", int(os.environ["PORT"])), App).serve_forever()
"""


def test_app_keeps_running_during_a_schema_migration(tmp_path: Path) -> None:
    with live_service(tmp_path / "data") as service:
        data = service.create("kept", BORN)
        born = service.visit(data).text
        service.terminate()
        old_schema.downgrade(service.data_dir / "builderd.db", "0012")
        assert service.visit(data).text == born
        service.start()
        kept = service.wait_status(data["uuid"], "running")
        assert service.visit(data).text == born
        # A later redeploy works on the adopted app.
        changed = service.call("PUT", f"/builders/{data['uuid']}", json={"env": {"NEW": "1"}})
        assert changed.status_code == 200, changed.text
        assert changed.json()["data"]["version"] == kept["version"] + 1
        assert service.visit(data).text != born
    with closing(sqlite3.connect(service.data_dir / "builderd.db")) as connection:
        assert connection.execute("SELECT version_num FROM alembic_version").fetchall() == [(revisions()[-1],)]
        ((member,),) = connection.execute("SELECT member FROM builders").fetchall()
        assert member
