"""A store that honest tenants fill: what each is answered, and that what the answer advises helps."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
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
        self._url, self.token = f"{service.url}/api/v1", service.make_token(name)

    def call(self, method: str, path: str, body: Any = None) -> httpx.Response:
        headers = {"Authorization": f"Bearer {self.token}"}
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


# Full in truth: the operator promised more than there is, and apps wrote it.

OVERCOMMITTED = {"BUILDERD_STORE__SIZE": "3", "BUILDERD_STORE__OVERCOMMIT": "100"}
MB = 1_000_000
#: Bytes of the backup, and what the store has left when it is restored: below 268 MB no disk is promised any more.
SAVED, LEFT = 700 * MB, 380 * MB
#: Against hanging only: space of deleted files and disks comes back in the background.
WAIT = 240.0


@pytest.fixture
def promising(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveService]:
    service = LiveService(tmp_path_factory.mktemp("p") / "data", OVERCOMMITTED)
    service.start()
    yield service
    service.down()


class Store:
    """The store of a service, seen from the host."""

    def __init__(self, service: LiveService) -> None:
        instance = json.loads((service.data_dir / "instance.json").read_text())["id"]
        self._root = Path(f"/run/builderd/{instance}/store")

    def writable(self) -> int:
        """Bytes that apps may still write: half of the reserve of 0.5 GB stays free."""
        status = os.statvfs(self._root)
        return max(0, status.f_bavail * status.f_frsize - (256 << 20))

    def disks(self) -> set[str]:
        return {path.name for path in (self._root / "disks").iterdir()}

    def wait_for(self, disks: set[str], writable: int) -> None:
        """Wait until there are these disks alone, and so much can be written: space comes back in the background."""
        deadline = time.monotonic() + WAIT
        while self.disks() != disks or self.writable() < writable:
            assert time.monotonic() < deadline, (self.disks(), self.writable())
            time.sleep(0.5)


def _executed(tenant: Tenant, uuid: str, command: str) -> tuple[int, str]:
    answer = tenant.call("POST", f"/builders/{uuid}/exec", {"command": command})
    assert answer.status_code == 200, answer.text
    return answer.json()["data"]["exit_code"], answer.json()["data"]["output"]


def _without_room(answer: httpx.Response) -> str:
    body = answer.json()
    assert (answer.status_code, body["code"]) == (503, "no_capacity"), body
    assert answer.headers["retry-after"] in ("30", "60")
    assert "Delete a builder" in body["message"]
    assert "operator" in body["message"]
    return str(body["message"])


def _fill(tenant: Tenant, uuid: str, size: int, name: str) -> str:
    return _executed(tenant, uuid, f"head -c {size} /dev/zero | tr '\\0' x > {name}; sync")[1]


def test_every_write_to_a_full_store_is_no_capacity_and_nothing_is_left_half_made(promising: LiveService) -> None:
    ana, ben, store = Tenant(promising, "ana"), Tenant(promising, "ben"), Store(promising)
    owner, neighbour = (one.create("app", disk).json()["data"]["uuid"] for one, disk in ((ana, 1), (ben, 3)))
    disks = store.disks()
    assert _executed(ana, owner, f"head -c {SAVED} /dev/urandom > big; echo kept > note")[0] == 0
    backup = ana.call("POST", f"/builders/{owner}/backups").json()["data"]["id"]
    restore = f"/builders/{owner}/backups/{backup}/restore"
    used = store.writable()
    assert _executed(ana, owner, "rm big; sync; echo later > note")[0] == 0
    store.wait_for(disks, used + SAVED // 2)

    # What fails is the restore's own write or, where its room is asked for later, the backup before it.
    for number in range(40):
        if (room := store.writable() - LEFT) < MB:
            break
        _fill(ben, neighbour, min(room, 200 * MB), f"fill{number}")
    assert store.writable() < SAVED
    said = _without_room(ana.call("POST", restore))
    assert "nothing was replaced" in said or "so it stays" in said, said
    assert _executed(ana, owner, "cat note; ls") == (0, "later\nmain.py\nnote\n")
    store.wait_for(disks, LEFT // 4)
    found = {one["id"]: one for one in ana.call("GET", "/backups").json()["data"]}
    assert found[backup]["fault"] == "", "the backup is not to blame"

    # Now apps and the service write until there is nothing left.
    assert "Disk quota exceeded" in _fill(ben, neighbour, 10 * SAVED, "more")
    assert "Disk quota exceeded" in _executed(ana, owner, "echo more > more 2>&1 || head -c 99999999 /dev/zero > x")[1]
    _without_room(ana.call("POST", restore))
    _without_room(ana.call("POST", f"/builders/{owner}/backups"))
    _without_room(ana.call("POST", f"/backups/{backup}/restore", {"as": "copy"}))
    _without_room(_sent(promising, ana, f"/builders/{owner}/files/sent", b"x" * 60 * MB))
    _without_room(ana.create("new", 1))
    files = {"main.py": TINY_APP, "new.txt": "new"}
    changes: tuple[dict[str, Any], ...] = (
        {"files": files},
        {"files": {**files, "requirements.txt": "six\n"}},
        {"files": files, "build": "head -c 50000000 /dev/urandom > made"},
    )
    for change in changes:
        _without_room(ana.call("PUT", f"/builders/{owner}", {"entrypoint": "python3 main.py", **change}))
    assert ana.call("GET", f"/builders/{owner}").json()["data"]["status"] == "running", "the old version serves"

    # What the answers advise helps.
    assert ben.call("DELETE", f"/builders/{neighbour}?purge=true").status_code == 200
    store.wait_for(store.disks(), 2 * SAVED)
    restored = ana.call("POST", restore)
    assert restored.status_code == 200, restored.text
    assert _executed(ana, owner, "cat note; stat -c %s big") == (0, f"kept\n{SAVED}\n")


def _sent(service: LiveService, tenant: Tenant, path: str, content: bytes) -> httpx.Response:
    return service.call("PUT", path, token=tenant.token, content=content)
