"""Checks made from the output of the jail's programs, which may be anything, and from a hostile OpenAPI document."""

from __future__ import annotations

import base64
import http.server
import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from tests.fakes.testers import PIXEL

from builderd.qa.model import CheckName, Outcome
from builderd.qa.testers.local import judge_browser, judge_crawl, judge_probe
from builderd.qa.testers.workers import __path__ as workers

CRAWL = {"pages": [["/", 200, ""]], "elsewhere": 0, "robots": 404, "left_out": 0}
PROBE = {
    "document": "/openapi.json",
    "operations": 2,
    "tested": 2,
    "cases": 40,
    "failures": [],
    "errors": [],
    "fault": "",
}
VIEW = {
    "name": "desktop",
    "status": 200,
    "html": True,
    "empty": False,
    "fault": "",
    "seconds": 0.5,
    "console": [],
    "missing": [],
    "png": base64.b64encode(PIXEL).decode(),
    "axe": [],
}


def crawled(**changes: Any) -> dict[CheckName, Outcome]:
    return {check.name: check.outcome for check in judge_crawl({**CRAWL, **changes}, 0.1)}


def browsed(**changes: Any) -> dict[CheckName, Outcome]:
    return {check.name: check.outcome for check in judge_browser({"views": [{**VIEW, **changes}]}, 1.0).checks}


def test_a_page_that_fails_is_the_crawl_s_and_one_that_is_missing_the_links() -> None:
    assert crawled()[CheckName.CRAWL] is Outcome.PASSED
    assert crawled(pages=[["/", 200, ""], ["/a", 500, ""]])[CheckName.CRAWL] is Outcome.FAILED
    assert crawled(pages=[["/", 200, ""], ["/a", None, "no answer in time"]])[CheckName.CRAWL] is Outcome.FAILED
    gone = crawled(pages=[["/", 200, ""], ["/a", 404, ""]])
    assert (gone[CheckName.CRAWL], gone[CheckName.LINKS]) == (Outcome.PASSED, Outcome.FAILED)
    assert crawled(pages=[["/", 404, ""]])[CheckName.LINKS] is Outcome.PASSED


@pytest.mark.parametrize(
    ("changes", "outcome"),
    [
        ({}, Outcome.PASSED),
        ({"document": None}, Outcome.PASSED),
        ({"failures": [["Server error", "GET /a"]]}, Outcome.FAILED),
        ({"errors": ["a reference leads nowhere"]}, Outcome.WARNING),
        ({"fault": "schemathesis did not end in time"}, Outcome.NOT_JUDGED),
    ],
)
def test_an_openapi_document_is_judged_by_its_answers(changes: dict[str, Any], outcome: Outcome) -> None:
    (check,) = judge_probe({**PROBE, **changes}, 1.0)
    assert check.outcome is outcome


def test_errors_on_the_console_are_the_app_s_unless_code_of_others_is_missing() -> None:
    own = [["boom", "http://app.localhost/"]]
    assert browsed()[CheckName.CONSOLE] is Outcome.PASSED
    assert browsed(console=own)[CheckName.CONSOLE] is Outcome.FAILED
    assert browsed(console=own, missing=[["https://cdn.test/x.js", "script"]])[CheckName.CONSOLE] is Outcome.NOT_JUDGED
    assert browsed(console=own, missing=[["https://cdn.test/x.png", "image"]])[CheckName.CONSOLE] is Outcome.FAILED
    away = [["Failed to load resource: net::ERR_NAME_NOT_RESOLVED", "https://cdn.test/x.png"]]
    assert browsed(console=away, missing=[["https://cdn.test/x.png", "image"]])[CheckName.CONSOLE] is Outcome.PASSED


def test_page_that_shows_nothing_fails_with_an_error_on_its_console() -> None:
    own, script = [["Uncaught TypeError: x is undefined", ""]], [["https://cdn.test/x.js", "script"]]
    assert browsed(empty=True)[CheckName.BROWSER] is Outcome.PASSED
    assert browsed(console=own)[CheckName.BROWSER] is Outcome.PASSED
    assert browsed(empty=True, console=own)[CheckName.BROWSER] is Outcome.FAILED
    assert browsed(empty=True, console=own, missing=script)[CheckName.BROWSER] is Outcome.NOT_JUDGED


def test_browser_message_about_a_missing_page_is_ignored() -> None:
    said, origin = "Failed to load resource: the server responded with a status of 404 ()", "http://app.localhost"
    assert browsed(status=404, console=[[said, f"{origin}/"]])[CheckName.CONSOLE] is Outcome.PASSED
    assert browsed(status=200, console=[[said, f"{origin}/a/b.js"]])[CheckName.CONSOLE] is Outcome.FAILED


def test_serious_obstacles_are_a_warning() -> None:
    assert browsed(axe=[["image-alt", "critical", "Images need text", 2]])[CheckName.ACCESSIBILITY] is Outcome.WARNING
    assert browsed(axe=[["region", "moderate", "Landmarks", 2]])[CheckName.ACCESSIBILITY] is Outcome.PASSED
    assert browsed(axe=None)[CheckName.ACCESSIBILITY] is Outcome.NOT_JUDGED


def test_screenshot_size_is_read_from_the_file() -> None:
    (picture,) = judge_browser({"views": [VIEW]}, 1.0).screenshots
    assert (picture.name, picture.width, picture.height, picture.png) == ("desktop", 1, 1, PIXEL)


@pytest.mark.parametrize(
    "view",
    [
        {"png": base64.b64encode(b"<svg onload=alert(1)>").decode()},
        {"png": "%%%"},
        {"png": base64.b64encode(PIXEL[:10]).decode()},
        {"console": "x"},
        {"axe": 5},
    ],
)
def test_malformed_worker_answer_raises(view: dict[str, Any]) -> None:
    with pytest.raises((ValueError, TypeError)):
        judge_browser({"views": [{**VIEW, **view}]}, 1.0)


def test_hostile_text_is_one_short_line() -> None:
    (check, *_) = judge_crawl({**CRAWL, "pages": [["/" + "x\n" * 5000, 500, ""]]}, 0.1)
    (finding,) = check.findings
    assert "\n" not in finding
    assert len(finding) < 500


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
