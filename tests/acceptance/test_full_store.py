"""A store of 10 GB that honest tenants fill: what each is answered, and that what the answer advises helps."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from tests.acceptance.live_service import PLAIN, TINY_APP, LiveService

pytestmark = [pytest.mark.root, pytest.mark.slow]

SETTINGS = {"BUILDERD_STORE__SIZE": "10", "BUILDERD_RETENTION__FAILED_DISKS": "0.001"}
#: Seconds until a failed builder has given its disk back: the setting, and the look once a minute.
PATIENCE = 300.0


@pytest.fixture
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveService]:
    service = LiveService(tmp_path_factory.mktemp("s") / "data", SETTINGS)
    service.start()
    yield service
    service.down()


class Tenant:
    """A tenant that deploys apps with small CPU and memory, so that only the disk counts."""

    def __init__(self, service: LiveService, name: str) -> None:
        self._url, self._token = f"{service.url}/api/v1", service.make_token(name)

    def call(self, method: str, path: str, body: Any = None) -> httpx.Response:
        headers = {"Authorization": f"Bearer {self._token}"}
        return httpx.request(method, self._url + path, headers=headers, json=body, timeout=120, **PLAIN)

    def create(self, name: str, disk: float, code: str = TINY_APP, **more: str) -> httpx.Response:
        resources = {"cpu": 0.25, "memory": 0.125, "disk": disk}
        files = {"main.py": code, **more}
        body = {"name": name, "entrypoint": "python3 main.py", "files": files, "resources": resources}
        return self.call("POST", "/builders", body)

    def delete(self, answer: httpx.Response) -> None:
        assert self.call("DELETE", f"/builders/{answer.json()['data']['uuid']}?purge=true").status_code == 200
        time.sleep(5)  # its space comes back within seconds


def refused(answer: httpx.Response) -> str:
    body = answer.json()
    assert (answer.status_code, body["code"], answer.headers["retry-after"]) == (503, "no_capacity", "60"), body
    assert "stopping one frees no disk" in body["message"]
    return str(body["message"])


def test_full_store_says_what_helps(service: LiveService) -> None:
    ana, ben, cas = (Tenant(service, name) for name in ("ana", "ben", "cas"))
    first, second = ana.create("app", 3), ben.create("app", 1.5)
    assert (first.status_code, second.status_code) == (201, 201)
    begun = time.monotonic()
    said = refused(cas.create("app", 3, requirements="flask\n"))
    assert time.monotonic() - begun < 10, "nothing was installed before"
    largest = re.search(r"a disk of at most ([\d.]+) GB", said)
    assert largest is not None, said
    small = cas.create("app", float(largest[1]))
    assert small.status_code == 201, small.text

    assert "Delete a builder" in refused(cas.create("more", 1))
    assert ana.call("POST", f"/builders/{first.json()['data']['uuid']}/stop").status_code == 200
    refused(cas.create("more", 1))
    ana.delete(first)
    broken = cas.create("broken", 3, code="raise SystemExit(1)")
    assert (broken.status_code, broken.json()["code"]) == (422, "start_failed")
    failed = broken.json()["data"]["uuid"]
    refused(ana.create("app", 3))
    deadline = time.monotonic() + PATIENCE
    while cas.call("GET", f"/builders/{failed}").json()["data"]["disk_released_at"] is None:
        assert time.monotonic() < deadline
        time.sleep(2)
    time.sleep(5)
    assert ana.create("app", 3).status_code == 201
    (event,) = cas.call("GET", f"/builders/{failed}/events?type=disk.released").json()["data"]
    assert event["details"]["gb"] == 3
    refused(cas.call("POST", f"/builders/{failed}/start"))
