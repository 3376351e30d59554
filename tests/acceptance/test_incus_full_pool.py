"""The storage pool of a member of Incus has no byte left, and an app takes each that comes free.

What needs space is refused in words, removals free some, and the neighbours serve on.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from tests.acceptance.idling import eventually, until_frozen
from tests.acceptance.incus_service import disks_on_incus, instances_on_incus, service_on
from tests.acceptance.live_service import TINY_APP, LiveService, body
from tests.acceptance.scenarios import Visitor, run
from tests.incus import running_cluster

from builderd.engine.incus.image import DROPPED

pytestmark = [pytest.mark.root, pytest.mark.slow]

SMALL = {"cpu": 0.25, "memory": 0.125, "disk": 1}
LARGE = {"cpu": 0.25, "memory": 0.25, "disk": 3}
#: Takes all space, in one large file and in small ones, which btrfs keeps among its metadata.
TAKER = """\
import time
number, size = 0, 1 << 20
while True:
    try:
        with open("taken", "ab", buffering=0) as file:
            while True:
                file.write(bytes(size))
    except OSError:
        size = max(size // 2, 4096)
    if size == 4096:
        number += 1
        try:
            with open(f"small-{number}", "wb") as file:
                file.write(bytes(1000))
        except OSError:
            time.sleep(0.05)
"""
TAKING = {
    "name": "taker",
    "entrypoint": "python3 main.py",
    "files": {"main.py": TAKER},
    "job_type": "worker",
    "resources": LARGE,
}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveService]:
    data_dir = tmp_path_factory.mktemp("full") / "data"
    with (
        running_cluster(1, "3GiB") as cluster,
        service_on(cluster, data_dir, BUILDERD_IDLE__FREEZE_AFTER="1", BUILDERD_RATES__REQUESTS="0") as service,
    ):
        yield service


def without_space(answer: httpx.Response) -> bool:
    """Assert that an answer is a success, or names the pool; return True for the latter."""
    if answer.is_success:
        return False
    assert (answer.status_code, answer.json()["code"]) == (503, "no_capacity"), answer.text
    assert answer.headers["retry-after"] in ("30", "60")
    assert "storage pool of Incus" in answer.json()["message"], answer.text
    assert "/storage-pools/" not in answer.text, "paths of the member"
    return True


def written(service: LiveService, uuid: str, content: bytes = b"x") -> httpx.Response:
    return service.call("PUT", f"/builders/{uuid}/files/sent", content=content)


def test_full_pool_is_named_removals_free_space_and_neighbours_serve_on(service: LiveService) -> None:
    made = {name: service.create(name, resources=SMALL) for name in ("neighbour", "stopped", "deleted")}
    made["sleeper"] = service.create("sleeper", resources=SMALL, auto_stop_interval=10)
    uuid = {name: one["uuid"] for name, one in made.items()}
    until_frozen(service, made["sleeper"])
    started = service.call("POST", "/builders", json=TAKING)
    assert started.status_code == 201, started.text
    taker = started.json()["data"]["uuid"]
    eventually(lambda: without_space(written(service, uuid["stopped"])))

    with Visitor(service, made["neighbour"]) as visitor:
        assert service.visit(made["sleeper"]).status_code == 200, "it wakes"
        assert run(service, uuid["neighbour"], "echo here") == (0, "here\n")
        assert without_space(written(service, uuid["neighbour"], b"x" * 20_000_000))
        late = service.call("POST", "/builders", json=body("late", resources=SMALL))
        assert without_space(late)
        files = {"main.py": TINY_APP, "new.txt": "x" * 100_000}
        changed = {"entrypoint": "python3 main.py", "files": files}
        assert without_space(service.call("PUT", f"/builders/{uuid['neighbour']}", json=changed))
        assert without_space(service.call("POST", f"/builders/{uuid['neighbour']}/backups"))

        stopped = service.call("POST", f"/builders/{uuid['stopped']}/stop")
        assert (stopped.status_code, stopped.json()["data"]["status"]) == (200, "stopped"), stopped.text
        assert without_space(service.call("POST", f"/builders/{uuid['stopped']}/start"))
        for gone in (uuid["deleted"], late.json()["data"]["uuid"]):
            answer = service.call("DELETE", f"/builders/{gone}?purge=true")
            assert answer.status_code == 200, answer.text
            assert service.call("GET", f"/builders/{gone}").status_code == 404
        until_frozen(service, made["sleeper"])
        answers = visitor.answers
        # More than the pipe to its log has room for: each visit is a line.
        eventually(lambda: visitor.answers > answers + 2000)
    assert visitor.failures == []
    assert service.builder(uuid["neighbour"])["status"] == "running"

    assert service.call("DELETE", f"/builders/{taker}?purge=true").status_code == 200
    eventually(lambda: not without_space(written(service, uuid["stopped"])))
    eventually(lambda: not without_space(service.call("POST", f"/builders/{uuid['stopped']}/start")))
    eventually(lambda: not without_space(_created(service)))
    service.visit(made["neighbour"], "after")
    eventually(lambda: "GET /after" in (logs := _logs(service, uuid["neighbour"])) and DROPPED in logs)
    for one in service.call("GET", "/builders").json()["data"]:
        assert service.call("DELETE", f"/builders/{one['uuid']}?purge=true").status_code == 200
    eventually(lambda: not left_of(service))


def left_of(service: LiveService) -> list[str]:
    """Return instances and disks of apps; those that are kept for logs go with their builder."""
    return [*instances_on_incus(service), *disks_on_incus(service)]


def _created(service: LiveService) -> httpx.Response:
    answer = service.call("POST", "/builders", json=body("later", resources=SMALL))
    if not answer.is_success:
        service.call("DELETE", f"/builders/{answer.json()['data']['uuid']}?purge=true")
    return answer


def _logs(service: LiveService, uuid: str) -> str:
    lines: list[dict[str, Any]] = service.call("GET", f"/builders/{uuid}/logs?tail=1000").json()["data"]
    return "\n".join(line["text"] for line in lines)
