"""Freeze, auto-stop and wake with real sandboxes and the real proxy."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.acceptance.idling import (
    COUNTING_APP,
    events,
    eventually,
    make_idle,
    pace,
    patient_visit,
    told_at,
    until_frozen,
    until_idled,
    until_reported,
)
from tests.acceptance.live_service import PATIENCE, LiveService
from tests.acceptance.on_engines import OnIncus, OwnEngine
from tests.acceptance.ssh_box import Box

pytestmark = [pytest.mark.root, pytest.mark.engines]

#: At once.
VISITORS = 1000

#: Serves many at once, as an app that is put before visitors does.
BUSY_APP = """\
import asyncio, os, pathlib

starts = pathlib.Path("starts.txt")
starts.write_text(str(int(starts.read_text()) + 1 if starts.exists() else 1))
body = starts.read_bytes()

async def answer(reader, writer):
    try:
        while await reader.readuntil(b"\\r\\n\\r\\n"):
            writer.write(b"HTTP/1.1 200 OK\\r\\nContent-Length: %d\\r\\n\\r\\n%s" % (len(body), body))
            await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()

async def main():
    server = await asyncio.start_server(answer, "0.0.0.0", int(os.environ["PORT"]))
    await server.serve_forever()

asyncio.run(main())
"""


@pytest.fixture
def idle(engine: OwnEngine | OnIncus, request: pytest.FixtureRequest) -> LiveService:
    shared: LiveService = request.getfixturevalue(engine.idle)
    return shared


@pytest.fixture
def napper(idle: LiveService) -> Iterator[dict[str, Any]]:
    """A builder that may idle for ten minutes."""
    if not idle.is_up:
        idle.start()
    data = idle.create("napper", COUNTING_APP, auto_stop_interval=10)
    yield data
    if not idle.is_up:
        idle.start()
    idle.call("DELETE", f"/builders/{data['uuid']}")


def test_idle_builder_freezes_and_thaws_for_a_request(idle: LiveService, napper: dict[str, Any]) -> None:
    assert patient_visit(idle, napper).text == "1"
    until_frozen(idle, napper)
    assert events(idle, napper, "sandbox.frozen")[0]["reason"] == "idle for 1 second"
    assert idle.builder(napper["uuid"])["status"] == "running"
    assert patient_visit(idle, napper).text == "1"
    thawed = until_reported(idle, napper, "sandbox.thawed")[0]
    assert (thawed["actor"], thawed["reason"]) == ("visitor", "woken by a visitor")
    until_frozen(idle, napper)
    answer = idle.call("POST", f"/builders/{napper['uuid']}/exec", json={"command": "cat starts.txt"})
    assert answer.json()["data"]["output"] == "1"


def test_auto_stopped_builder_starts_for_a_request(idle: LiveService, napper: dict[str, Any]) -> None:
    assert until_idled(idle, napper)["status_reason"] == "idle for 10 minutes"
    assert patient_visit(idle, napper).text == "2"
    assert idle.wait_status(napper["uuid"], "running")["status_reason"] == "woken by a visitor"


def test_builder_stopped_by_a_person_is_not_woken(idle: LiveService, napper: dict[str, Any]) -> None:
    idle.call("POST", f"/builders/{napper['uuid']}/stop")
    answer = idle.visit(napper)
    assert (answer.status_code, answer.json()["code"]) == (503, "stopped")
    assert "stopped by its owner" in answer.json()["message"]
    assert idle.builder(napper["uuid"])["status"] == "stopped"


def test_unauthorized_request_does_not_wake_a_private_preview(idle: LiveService) -> None:
    data = idle.create("secret", COUNTING_APP, auto_stop_interval=10, visibility="private")
    try:
        until_idled(idle, data)
        assert idle.visit(data).status_code == 401
        time.sleep(1)
        assert idle.builder(data["uuid"])["status"] == "stopped"
        assert idle.visit(data, headers={"X-Service-Token": data["service_token"]}).text == "2"
    finally:
        idle.call("DELETE", f"/builders/{data['uuid']}")


def test_lease_by_the_app_keeps_the_builder_awake(idle: LiveService, napper: dict[str, Any]) -> None:
    take = (
        "python3 -c \"import os, urllib.request as u; r = u.Request(os.environ['BUILDERD_URL'] + '/api/v1/builders/'"
        " + os.environ['BUILDER_UUID'] + '/leases', b'{\\\"seconds\\\": 600}', {'Content-Type': 'application/json',"
        " 'Authorization': 'Bearer ' + os.environ['SERVICE_TOKEN']}); print(u.urlopen(r).status)\""
    )
    answer = idle.call("POST", f"/builders/{napper['uuid']}/exec", json={"command": take})
    assert answer.json()["data"]["output"] == "201\n", answer.text
    (lease,) = idle.call("GET", f"/builders/{napper['uuid']}/leases").json()["data"]
    assert lease["created_by"] == "app"
    make_idle(idle, napper)
    time.sleep(2)
    assert idle.builder(napper["uuid"])["status"] == "running"
    # It may have slept before it was kept awake.
    taken = datetime.fromisoformat(lease["created_at"])
    assert [time for time in told_at(idle, napper, "sandbox.frozen") if time > taken] == []


def test_ssh_session_keeps_the_builder_awake(idle: LiveService, napper: dict[str, Any], tmp_path: Path) -> None:
    box = Box(idle, napper, tmp_path)
    with pace() as machine:
        done = box.run("now='date -u +%FT%T.%6NZ'; $now; sleep 6; $now")
    begun, ended = (datetime.fromisoformat(word) for word in done.stdout.decode().split())
    until_reported(idle, napper, "ssh.closed")
    slept = [time for time in told_at(idle, napper, "sandbox.frozen") if begun < time < ended]
    # Where nothing was noted for as long, it may fall asleep; the session wakes it at once, and else has no end.
    assert len(slept) <= (1 if machine.longest > 0.5 else 0), slept
    eventually(lambda: any(time > ended for time in told_at(idle, napper, "sandbox.frozen")))


def test_wake_socket_is_not_visible_in_sandboxes(idle: LiveService, napper: dict[str, Any]) -> None:
    look = "find / -xdev -name 'wake.sock' 2>/dev/null; grep -c wake.sock /proc/net/unix"
    answer = idle.call("POST", f"/builders/{napper['uuid']}/exec", json={"command": look})
    assert answer.json()["data"]["output"] == "0\n"


@pytest.mark.slow
def test_request_wakes_a_builder_after_a_restart_of_the_service(idle: LiveService, napper: dict[str, Any]) -> None:
    until_frozen(idle, napper)
    idle.kill()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(patient_visit, idle, napper)
        time.sleep(0.5)
        idle.start()
        assert waiting.result().text == "1"
    until_idled(idle, napper)
    idle.kill()
    idle.start()
    assert patient_visit(idle, napper).text == "2"


def test_paused_request_gets_an_error_page_without_the_service(idle: LiveService, napper: dict[str, Any]) -> None:
    until_frozen(idle, napper)
    idle.kill()
    page = idle.visit(napper, headers={"Accept": "text/html"})
    assert (page.status_code, page.headers["retry-after"]) == (503, "5")
    assert "Cannot be started now" in page.text


@pytest.mark.slow
def test_no_request_is_404_while_the_service_starts_again(idle: LiveService) -> None:
    data = idle.create("steady")
    try:
        idle.down()
        statuses = set()
        with ThreadPoolExecutor(1) as pool:
            starting = pool.submit(idle.start)
            while not starting.done():
                with contextlib.suppress(httpx.TransportError):
                    statuses.add(idle.visit(data).status_code)
            starting.result()
        idle.wait_served(data)
        assert statuses <= {200, 502, 503}
    finally:
        idle.call("DELETE", f"/builders/{data['uuid']}")


@pytest.fixture
def crowded(idle: LiveService) -> Iterator[dict[str, Any]]:
    data = idle.create("crowded", BUSY_APP, auto_stop_interval=10)
    yield data
    idle.call("DELETE", f"/builders/{data['uuid']}")


def test_concurrent_requests_cause_one_thaw(idle: LiveService, crowded: dict[str, Any]) -> None:
    until_frozen(idle, crowded)
    assert crowd(idle, crowded) == [(200, b"1")] * VISITORS
    until_reported(idle, crowded, "sandbox.thawed")
    # On a loaded machine the crowd may take longer than the second after which the app is frozen again.
    moves = [event["type"] for event in reversed(events(idle, crowded, "sandbox.frozen", "sandbox.thawed"))]
    assert set(moves[::2]) == {"sandbox.frozen"}
    assert set(moves[1::2]) == {"sandbox.thawed"}
    assert len(events(idle, crowded, "sandbox.started")) == 1


@pytest.mark.slow
def test_concurrent_requests_cause_one_start(idle: LiveService, crowded: dict[str, Any]) -> None:
    until_idled(idle, crowded)
    assert crowd(idle, crowded) == [(200, b"2")] * VISITORS
    assert len(events(idle, crowded, "sandbox.started")) == 2


def crowd(service: LiveService, data: dict[str, Any]) -> list[tuple[int, bytes]]:
    """Return the answers of visitors who come at once."""
    host = data["preview_url"].split("/")[2]
    return asyncio.run(visit_at_once(service.preview_port, host, VISITORS))


async def visit_at_once(port: int, host: str, visitors: int) -> list[tuple[int, bytes]]:
    async with asyncio.timeout(PATIENCE):
        return await asyncio.gather(*(visit(port, host) for _ in range(visitors)))


async def visit(port: int, host: str) -> tuple[int, bytes]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
    answer = await reader.read()
    writer.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split(b" ")[1]), body
