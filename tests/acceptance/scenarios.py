"""Scenarios of users and operators, shared by tests of both kinds of isolation and both databases."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

import httpx
from tests.acceptance.host_traces import assert_traces, traces_at_rest
from tests.acceptance.live_service import TINY_APP, LiveService, body


def whole_life(service: LiveService, **fields: Any) -> None:
    """A builder from its creation to the last trace of it."""
    service.call("DELETE", f"/builders/{service.create('first', **fields)['uuid']}")  # what is made once and kept
    before = traces_at_rest(service)
    data = service.create("life", env={"GREETING": "good morning"}, **fields)
    uuid = data["uuid"]
    assert service.visit(data).text == "good morning"
    assert run(service, uuid, "echo kept > note; id -u; echo err >&2") == (0, "1000\nerr\n")

    assert service.call("POST", f"/builders/{uuid}/stop").json()["data"]["status"] == "stopped"
    assert service.visit(data).status_code == 503
    assert service.call("POST", f"/builders/{uuid}/exec", json={"command": "true"}).status_code == 409

    assert service.call("POST", f"/builders/{uuid}/start").json()["data"]["status"] == "running"
    assert service.visit(data).text == "good morning"
    assert run(service, uuid, "cat note") == (0, "kept\n")

    assert service.call("POST", f"/builders/{uuid}/restart").json()["data"]["status"] == "running"
    assert service.visit(data).text == "good morning"
    lines = service.call("GET", f"/builders/{uuid}/logs").json()["data"]
    assert any("GET /" in line["text"] for line in lines)

    assert service.call("DELETE", f"/builders/{uuid}").status_code == 200
    assert service.call("GET", f"/builders/{uuid}").status_code == 404
    assert service.visit(data).status_code == 404
    assert_traces(service, before)


def run(service: LiveService, uuid: str, command: str) -> tuple[int, str]:
    """The exit code and the output of a command beside the app."""
    response = service.call("POST", f"/builders/{uuid}/exec", json={"command": command})
    assert response.status_code == 200, response.text
    data = response.json()["data"]
    return data["exit_code"], data["output"]


#: Counts its runs in a file.
JOB = """\
import sys, pathlib
runs = pathlib.Path("runs.txt")
runs.write_text(str(int(runs.read_text()) + 1 if runs.exists() else 1))
print("run", runs.read_text())
print("done", file=sys.stderr)
sys.exit(int(sys.argv[1]))
"""


def job(service: LiveService, code: int, status: str, **fields: Any) -> None:
    """A job that exits with this code: twice to its end, with its output, its files and its exit code kept."""
    entrypoint = f"python3 main.py {code}"
    data = service.create(f"job-{code}", JOB, entrypoint=entrypoint, job_type="one_time", **fields)
    done = service.wait_status(data["uuid"], "completed", "failed")
    assert (done["status"], done["exit_code"]) == (status, code)
    lines = service.call("GET", f"/builders/{data['uuid']}/logs").json()["data"]
    assert {(line["stream"], line["text"]) for line in lines} >= {("stdout", "run 1"), ("stderr", "done")}
    again = service.call("POST", f"/builders/{data['uuid']}/start")
    assert again.status_code == 200
    assert service.wait_status(data["uuid"], "completed", "failed")["exit_code"] == code
    lines = service.call("GET", f"/builders/{data['uuid']}/logs").json()["data"]
    assert [line["text"] for line in lines if line["stream"] == "stdout"] == ["run 1", "run 2"]
    service.call("DELETE", f"/builders/{data['uuid']}")


#: By a name: an app that does not start, and words of the message that says why.
FAILURES: Mapping[str, tuple[str, list[str]]] = {
    "exits": ("import sys; print('no config'); sys.exit(3)", ["exited with code 3", "no config"]),
    "other-port": (TINY_APP.replace('int(os.environ["PORT"])', "5000"), ["5000", "$PORT"]),
    "memory": ("b = []\nwhile True: b.append(b'x' * 10**7)", ["out of memory", "0.125 GB"]),
    "silent": ("import time; time.sleep(3600)", ["did not listen on 0.0.0.0:8000"]),
}


def failure_to_start(service: LiveService, failure: str, **fields: Any) -> None:
    """One of ``FAILURES``: the call says why, and the builder is kept to be looked at."""
    main, words = FAILURES[failure]
    request = body(f"fails-{failure}", main, resources={"memory": 0.125}, **fields)
    response = service.call("POST", "/builders", json=request)
    assert response.status_code == 422, response.text
    answer = response.json()
    assert answer["code"] == "start_failed"
    for word in words:
        assert word in answer["message"], answer["message"]
    kept = service.builder(answer["data"]["uuid"])
    assert kept["status"] == "failed"
    service.call("DELETE", f"/builders/{kept['uuid']}")


def absence_of_the_service(service: LiveService, end: Callable[[LiveService], object], **fields: Any) -> None:
    """The service ends in this way: its apps and previews go on, and the next one adopts them."""
    data = service.create("steady", **fields)
    first = first_process(service, data["uuid"])
    with Visitor(service, data) as visitor:
        end(service)
        assert service.visit(data).status_code == 200
        service.start()
        assert service.builder(data["uuid"])["status"] == "running"
        assert service.visit(data).status_code == 200
    assert visitor.failures == []
    assert visitor.answers > 0
    assert first_process(service, data["uuid"]) == first
    service.call("DELETE", f"/builders/{data['uuid']}")


def first_process(service: LiveService, uuid: str) -> str:
    """Return the start time of the app's first process by its kernel: another time is another run."""
    code, ticks = run(service, uuid, "cut -d' ' -f22 /proc/1/stat")
    assert code == 0
    return ticks


class Visitor:
    """Visits a preview again and again in a thread of its own, and counts what was not a 200."""

    def __init__(self, service: LiveService, data: Mapping[str, Any]) -> None:
        self.answers = 0
        self.failures: list[str] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._visit, args=(service, data), daemon=True)

    def __enter__(self) -> Visitor:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(60)

    def _visit(self, service: LiveService, data: Mapping[str, Any]) -> None:
        while not self._over.wait(0.01):
            try:
                status = service.visit(data).status_code
            except httpx.TransportError as error:
                self.failures.append(repr(error))
                continue
            self.answers += 1
            if status != 200:
                self.failures.append(str(status))
