"""QA as its user meets it: the route that waits for no gate, the verdict of jobs, and the report of a copy."""

from __future__ import annotations

import json
import struct
import threading
import time
import xml.etree.ElementTree as ET
from typing import Any

import pytest
from tests.acceptance.conftest import ServiceOfModule
from tests.acceptance.live_service import TINY_APP, LiveService, body
from tests.acceptance.on_engines import OnIncus, OwnEngine

pytestmark = [pytest.mark.root, pytest.mark.engines]

#: Answers `/` once `/go` was asked for, or just before the gate would give it up; everything else at once.
SLOW_HOME = """\
import os, threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

go = threading.Event()

class App(BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/":
            go.wait(12)
        if self.path == "/go":
            go.set()
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"ok")

ThreadingHTTPServer(("0.0.0.0", int(os.environ["PORT"])), App).serve_forever()
"""
#: Writes down how it was started and asked, and tells it at /told.
TELLS = """\
import json, os, socket
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

try:
    socket.create_connection(("192.0.2.1", 80), 1).close()
    reached = "reached"
except OSError as error:
    reached = type(error).__name__
with open("starts.txt", "a") as file:
    file.write(json.dumps([os.environ.get("API_KEY"), reached]) + "\\n")

class App(BaseHTTPRequestHandler):
    def do_GET(self):
        with open("asked.txt", "a") as file:
            file.write(self.path + "\\n")
        text = "<!doctype html><html lang=en><title>Tells</title><main><h1>Tells</h1><a href=/more>x</a></main></html>"
        if self.path == "/told":
            text = json.dumps([open("starts.txt").read(), open("asked.txt").read()])
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(text.encode())
        print("key", os.environ.get("API_KEY"), reached, flush=True)

ThreadingHTTPServer(("0.0.0.0", int(os.environ["PORT"])), App).serve_forever()
"""


@pytest.fixture
def reporting(engine: OwnEngine | OnIncus, service_of_module: ServiceOfModule) -> LiveService:
    return service_of_module(engine, BUILDERD_QA__REPORT="true")


def reported(service: LiveService, uuid: str) -> dict[str, Any]:
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        qa: dict[str, Any] = service.call("GET", f"/builders/{uuid}/qa").json()["data"]
        if qa["status"] in ("done", "dropped"):
            return qa
        time.sleep(0.2)
    raise AssertionError(f"no report: {qa}")


def test_visitors_are_served_before_the_qa_gate_ends(service: LiveService) -> None:
    request = {**body("qa-slow-home", SLOW_HOME)}
    answered = service.call("POST", "/builders", json=request, headers={"Prefer": "respond-async"}).json()["data"]
    while service.visit(answered, "other").status_code != 200:
        time.sleep(0.02)
    now = service.builder(answered["uuid"])
    assert (now["status"], now["qa_passed"]) == ("creating", None)
    service.visit(answered, "go")
    assert service.wait_status(answered["uuid"], "running")["qa_passed"] is True
    service.call("DELETE", f"/builders/{answered['uuid']}")


def test_stop_waits_for_the_app_to_flush_its_data(service: LiveService) -> None:
    """Also one that a shell has started, which does not wait for it by itself."""
    late = (
        "import os, signal, sys, time\n"
        "def end(*_):\n    time.sleep(1)\n    open('kept.txt', 'w').write('kept')\n    sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, end)\n"
    )
    data = service.create("qa-late", late + TINY_APP)
    service.call("POST", f"/builders/{data['uuid']}/stop")
    service.call("POST", f"/builders/{data['uuid']}/start")
    assert service.call("GET", f"/builders/{data['uuid']}/files/kept.txt").text == "kept"
    service.call("DELETE", f"/builders/{data['uuid']}")


@pytest.mark.parametrize(("code", "passed"), [(0, True), (3, False)])
def test_job_has_no_verdict_until_it_ends(service: LiveService, code: int, passed: bool) -> None:
    main = (
        "import pathlib, sys, time\nprint('at work', flush=True)\n"
        f"while not pathlib.Path('go').exists():\n    time.sleep(0.05)\nsys.exit({code})\n"
    )
    data = service.create(f"qa-job-{code}", main, job_type="one_time")
    assert data["qa_passed"] is None
    # It may end before the command's own end is told.
    service.call("POST", f"/builders/{data['uuid']}/exec", json={"command": "touch go"})
    ended = service.wait_status(data["uuid"], "completed" if passed else "failed")
    assert ended["qa_passed"] is passed
    (check,) = service.call("GET", f"/builders/{data['uuid']}/qa").json()["data"]["gate"]
    assert (check["name"], check["outcome"]) == ("exit", "passed" if passed else "failed")
    if not passed:
        assert "code 3" in check["message"]
        assert "at work" in check["message"]
    service.call("DELETE", f"/builders/{data['uuid']}")


WHITE = "<!doctype html><title>x</title><div id=app></div><script>document.title.missing.thing</script>"
DRAWN = "<!doctype html><title>x</title><div id=app></div><script>app.textContent = 'It is drawn'</script>"


def test_page_that_shows_nothing_but_errors_is_no_deployment(reporting: LiveService) -> None:
    fields = {"job_type": "static", "require_qa": True}
    refused = reporting.call("POST", "/builders", json={"name": "qa-white", "files": {"index.html": WHITE}, **fields})
    assert (refused.status_code, refused.json()["code"]) == (422, "qa_failed"), refused.text
    assert "no visible text" in refused.json()["message"]
    drawn = reporting.call("POST", "/builders", json={"name": "qa-drawn", "files": {"index.html": DRAWN}, **fields})
    data = drawn.json()["data"]
    assert (drawn.status_code, data["qa_passed"]) == (201, True), drawn.text
    # It is tried beside the one that serves, which no visitor misses.
    refused = reporting.call("PUT", f"/builders/{data['uuid']}", json={"files": {"index.html": WHITE}})
    assert (refused.status_code, refused.json()["code"]) == (422, "qa_failed"), refused.text
    assert "It is drawn" in reporting.visit(data).text
    assert reporting.builder(data["uuid"])["version"] == 1
    reporting.call("DELETE", f"/builders/{data['uuid']}")


def test_qa_report_uses_an_isolated_copy(reporting: LiveService) -> None:
    reporting.call("PUT", "/credentials/shop", json={"values": {"API_KEY": "the-real-one"}})
    data = reporting.create("qa-tells", TELLS, credentials=["shop"])
    qa = reported(reporting, data["uuid"])
    assert qa["status"] == "done", qa
    checks = {check["name"]: check for check in qa["checks"]}
    assert {"crawl", "links", "openapi", "browser", "console", "log", "sigterm", "files", "restart"} <= set(checks)
    assert "failed" not in {check["outcome"] for check in qa["checks"]}, qa["checks"]
    starts, asked = json.loads(reporting.visit(data, "told").text)
    assert starts.count("the-real-one") == 1, "the app itself was started once"
    assert "dummy" not in starts
    assert asked.split() == ["/", "/told"], "the gate asks once, and the report asks the copy"

    _formats(reporting, data["uuid"], qa)
    _pictures(reporting, data["uuid"], qa)
    reporting.call("DELETE", f"/builders/{data['uuid']}")


def _formats(service: LiveService, uuid: str, qa: dict[str, Any]) -> None:
    junit = service.call("GET", f"/builders/{uuid}/qa?format=junit")
    assert junit.headers["content-type"].startswith("application/xml")
    cases = ET.fromstring(junit.text).iter("testcase")
    assert {case.attrib["name"] for case in cases} == {check["name"] for check in [*qa["gate"], *qa["checks"]]}
    answer = service.call("GET", f"/builders/{uuid}/qa?format=ctrf")
    assert not [text for text in (json.dumps(qa), junit.text, answer.text) if "the-real-one" in text]
    ctrf = answer.json()
    assert ctrf["results"]["summary"]["tests"] == len(qa["gate"]) + len(qa["checks"])
    assert ctrf["results"]["summary"]["failed"] == 0


def _pictures(service: LiveService, uuid: str, qa: dict[str, Any]) -> None:
    sizes = {}
    for picture in qa["screenshots"]:
        answer = service.call("GET", picture["url"].removeprefix("/api/v1"))
        assert answer.headers["content-type"] == "image/png"
        assert answer.content.startswith(b"\x89PNG\r\n\x1a\n")
        sizes[picture["name"]] = struct.unpack(">II", answer.content[16:24])
    assert set(sizes) == {"desktop", "phone"}
    assert sizes["desktop"][0] > sizes["phone"][0]
    assert service.call("GET", f"/builders/{uuid}/qa/screenshots/other.png").status_code == 404


@pytest.mark.slow
def test_new_version_has_an_open_verdict(reporting: LiveService) -> None:
    data = reporting.create("qa-open")
    new = {"files": {"main.py": SLOW_HOME}}
    seen: list[dict[str, Any]] = []
    call = threading.Thread(
        target=lambda: seen.append(reporting.call("PUT", f"/builders/{data['uuid']}", json=new).json())
    )
    call.start()
    deadline = time.monotonic() + 60
    while (two := reporting.call("GET", f"/builders/{data['uuid']}/qa?version=2")).status_code != 200:
        assert time.monotonic() < deadline, two.text
        time.sleep(0.02)
    assert (two.json()["data"]["qa_passed"], two.json()["data"]["gate"]) == (None, [])
    # The old version says something else for as long as it is the one that is visited.
    while call.is_alive() and reporting.visit(data, "go").text != "ok":
        time.sleep(0.05)
    call.join()
    assert seen[0]["data"]["qa_passed"] is True
    reporting.call("DELETE", f"/builders/{data['uuid']}")
