"""A hostile OpenAPI document ends the probe in a verdict without paths of the jail."""

from __future__ import annotations

import http.server
import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from builderd.adapters.testers.local import judge_probe
from builderd.adapters.testers.workers import __path__ as workers
from builderd.domain.qa import Outcome


@pytest.mark.parametrize("document", [{"openapi": [], "paths": {}}, {"openapi": "3.0.0", "paths": [1]}])
def test_a_hostile_document_gets_a_clear_verdict(document: object) -> None:
    class App(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps(document).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), App) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        request = {"url": "http://app.example", "port": server.server_port, "examples": 1, "seconds": 60}
        probe = [sys.executable, str(Path(next(iter(workers))) / "probe.py")]
        done = subprocess.run(probe, input=json.dumps(request).encode(), capture_output=True, check=True)
        server.shutdown()
        thread.join()
    (check,) = judge_probe(json.loads(done.stdout), 1)
    assert check.outcome is Outcome.NOT_JUDGED
    assert "site-packages" not in check.message
    assert "Traceback" not in check.message
    assert "no document that can be tried" in check.message
