"""Kinds of builders on the real parts."""

from __future__ import annotations

import subprocess
import time

import pytest
from tests.acceptance.live_service import TINY_APP, LiveService
from tests.acceptance.scenarios import run

pytestmark = [pytest.mark.root, pytest.mark.engines]

WORKER = """\
import itertools, pathlib, time
for number in itertools.count():
    pathlib.Path("count").write_text(str(number))
    time.sleep(0.05)
"""


def test_worker_runs_without_a_port_and_its_preview_is_a_page(service: LiveService) -> None:
    files = {"main.py": WORKER, "Procfile": "worker: python3 main.py\n"}
    with service.deployed("worker", files, None) as data:
        assert (data["job_type"], data["status"], data["qa_passed"]) == ("worker", "running", True)
        assert run(service, data["uuid"], "until [ $(cat count) -ge 10 ]; do sleep 0.05; done")[0] == 0
        page = service.visit(data)
        assert (page.status_code, page.json()["code"]) == (503, "worker")


def test_worker_that_exits_at_once_fails_with_its_last_lines(service: LiveService) -> None:
    body = {"name": "ends", "entrypoint": "echo lost; exit 3", "files": {"a": ""}, "job_type": "worker"}
    answer = service.call("POST", "/builders", json=body)
    assert (answer.status_code, answer.json()["code"]) == (422, "start_failed")
    assert answer.json()["message"].endswith("exited with code 3.\nIts last lines:\nlost")
    service.call("DELETE", f"/builders/{answer.json()['data']['uuid']}")


def test_sandbox_runs_commands_and_previews_its_listening_port(service: LiveService) -> None:
    answer = service.call("POST", "/builders", json={"name": "box", "job_type": "sandbox", "port": 8765})
    assert answer.status_code == 201, answer.text
    data = answer.json()["data"]
    try:
        assert run(service, data["uuid"], "echo hello > /app/index.html; cat /app/index.html") == (0, "hello\n")
        assert service.visit(data).status_code == 401
        start = (
            "setsid python3 -m http.server 8765 >/dev/null 2>&1 & "
            "until python3 -c 'import socket; socket.create_connection((\"127.0.0.1\", 8765))' 2>&1; do sleep 0.1; done"
        )
        assert run(service, data["uuid"], start)[0] == 0
        page = service.visit(data, headers={"X-Service-Token": data["service_token"]})
        assert (page.status_code, "index.html" in page.text or "hello" in page.text) == (200, True)
        # Another port of the sandbox is private too, and a link opens that port alone.
        path = f"/builders/{data['uuid']}"
        assert run(service, data["uuid"], start.replace("8765", "3000"))[0] == 0
        url = service.call("GET", f"{path}/ports/3000/preview-url").json()["data"]["url"]
        other = {**data, "preview_url": url}
        assert service.visit(other).status_code == 401
        assert service.visit(other, headers={"X-Service-Token": data["service_token"]}).status_code == 200
        link = service.call("POST", f"{path}/preview-links", json={"expires_minutes": 5, "port": 3000}).json()["data"]
        token = link["url"].partition("=")[2]
        assert service.visit(other, headers={"X-Service-Token": token}).status_code == 200
        assert service.visit(data, headers={"X-Service-Token": token}).status_code == 401
        assert service.call("DELETE", f"{path}/preview-links/{link['id']}").status_code == 204
        assert service.visit(other, headers={"X-Service-Token": token}).status_code == 401
        zombies = "for n in 1 2 3; do (sleep 0.1 &) ; done; sleep 0.5; ps -e -o stat= | grep -c Z || true"
        assert run(service, data["uuid"], zombies)[1].strip() == "0"
    finally:
        service.call("DELETE", f"/builders/{data['uuid']}?purge=true")


def test_app_of_a_monorepo_is_built_released_and_run_in_its_folder(service: LiveService) -> None:
    server = "import os\nprint(os.getcwd(), flush=True)\n" + TINY_APP
    files = {
        "apps/web/Procfile": "web: GREETING=$(cat made released) python3 main.py\nrelease: pwd > released\n",
        "apps/web/main.py": server,
        "shared/word": "shared\n",
    }
    fields = {"root": "apps/web/", "build": "cat ../../shared/word > made"}
    with service.deployed("mono", files, None, **fields) as data:
        assert (data["root"], data["release"]) == ("apps/web", "pwd > released")
        assert service.visit(data).text == "shared\n/app/apps/web"
        path = f"/builders/{data['uuid']}"
        assert {line["text"] for line in service.call("GET", f"{path}/logs").json()["data"]} >= {"/app/apps/web"}
        # A link in its place leads nowhere but inside, and a folder that is gone fails with the shell's words.
        assert run(service, data["uuid"], "mv apps moved && ln -s /etc apps")[0] == 0
        failed = service.call("POST", f"{path}/restart")
        assert (failed.status_code, failed.json()["code"]) == (422, "start_failed")
        assert "can't cd to /app/apps/web" in failed.json()["message"]


HTTP2 = """\
const server = require('http2').createServer()
server.on('stream', (stream, headers) => {
  stream.respond({':status': 200, 'content-type': 'application/grpc'}, {waitForTrailers: true})
  stream.on('wantTrailers', () => stream.sendTrailers({'grpc-status': '0'}))
  stream.end(`${headers[':method']} ${headers[':path']} ${headers['x-forwarded-proto']}`)
})
server.listen(8000, '0.0.0.0')
"""


def test_app_of_http2_is_asked_by_http2(service: LiveService) -> None:
    fields = {"protocol": "h2c", "require_qa": True, "visibility": "private"}
    with service.deployed("grpc", {"main.js": HTTP2}, "node main.js", **fields) as data:
        assert (data["protocol"], data["qa_passed"]) == ("h2c", True)
        assert service.visit(data).status_code == 401
        token = f"X-Service-Token: {data['service_token']}"
        host = data["preview_url"].split("/")[2]
        url = f"http://127.0.0.1:{service.preview_port}/pkg.Service/Call"
        curl = ("curl", "-sS", "--http2-prior-knowledge", "-i", "-H", f"Host: {host}", "-H", token, "-d", "x", url)
        said = subprocess.run(curl, capture_output=True, text=True, timeout=30, check=True).stdout
        assert said.startswith("HTTP/2 200")
        assert "POST /pkg.Service/Call http" in said
        assert "grpc-status: 0" in said
        # A visitor of HTTP/1.1 is served too: the proxy translates.
        assert service.visit(data, "x", headers={"X-Service-Token": data["service_token"]}).text == "GET /x http"
        service.call("PATCH", f"/builders/{data['uuid']}", json={"visibility": "public"})
        assert service.visit(data, "y").text == "GET /y http"


def test_job_reads_its_input(service: LiveService) -> None:
    body = {"name": "reads", "entrypoint": "wc -l; cat /dev/null", "files": {"a": ""}, "job_type": "one_time"}
    answer = service.call("POST", "/builders", json={**body, "stdin": "one\ntwo\nthree\n"})
    assert answer.status_code == 201, answer.text
    path = f"/builders/{answer.json()['data']['uuid']}"
    try:
        for _ in range(200):
            if (data := service.call("GET", path).json()["data"])["status"] != "running":
                break
            time.sleep(0.1)
        assert (data["status"], data["exit_code"]) == ("completed", 0)
        assert [line["text"] for line in service.call("GET", f"{path}/logs").json()["data"]] == ["3"]
    finally:
        service.call("DELETE", path)


def test_streams_of_a_command_are_kept_apart(service: LiveService) -> None:
    answer = service.call("POST", "/builders", json={"name": "apart", "job_type": "sandbox"})
    assert answer.status_code == 201, answer.text
    path = f"/builders/{answer.json()['data']['uuid']}"
    try:
        command = "for n in 1 2; do echo out$n; echo err$n >&2; done; (sleep 30 >&2 &); head -c 3000000 /dev/zero >&2"
        result = service.call("POST", f"{path}/exec", json={"command": command, "separate": True}).json()["data"]
        assert (result["exit_code"], result["output"]) == (0, "out1\nout2\n")
        assert result["stderr"].startswith("err1\nerr2\n")
        assert len(result["stderr"]) == 10 + 3_000_000
        late = service.call(
            "POST", f"{path}/exec", json={"command": "echo x >&2; sleep 9", "separate": True, "timeout": 1}
        )
        assert (late.json()["data"]["exit_code"], late.json()["data"]["stderr"]) == (124, "x\n")
    finally:
        service.call("DELETE", f"{path}?purge=true")
