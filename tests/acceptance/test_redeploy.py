"""New versions under load: no plain request fails, whatever becomes of the version, and the data stays."""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from tests.acceptance.live_service import PATIENCE, LiveService, body
from tests.acceptance.load import load
from tests.acceptance.on_engines import OnIncus, OwnEngine
from tests.acceptance.redeploy_app import APP, FILES, SOCKETS, put
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

pytestmark = [pytest.mark.root, pytest.mark.engines]

RATE = 25

log = logging.getLogger(__name__)


@pytest.fixture
def builder(service: LiveService) -> Iterator[dict[str, Any]]:
    with service.deployed("redeployed", FILES, "python3 main.py", env={"GREETING": "v1"}) as data:
        yield data


def test_no_request_fails_during_redeploys_settings_changes_and_rollbacks(
    engine: OwnEngine | OnIncus, service: LiveService, builder: dict[str, Any]
) -> None:
    # Each takes seconds of CPU, on Incus five: script/soak has more of them.
    redeploys, patches, rollbacks = (1, 0, 1) if engine.is_incus else (1, 1, 1)
    exercise(service, builder, redeploys=redeploys, patches=patches, rollbacks=rollbacks)


@pytest.mark.slow
def test_no_request_fails_during_many_redeploys(service: LiveService, builder: dict[str, Any]) -> None:
    exercise(service, builder, redeploys=20, patches=20, rollbacks=5)


def exercise(service: LiveService, builder: dict[str, Any], *, redeploys: int, patches: int, rollbacks: int) -> None:
    path = f"/builders/{builder['uuid']}"
    wanted = {"v1"}
    with load(service, builder, RATE) as visits, load(service, builder, RATE / 10, "POST") as posts:
        for number in range(redeploys):
            put(service, builder, files={**FILES, "new.txt": str(number)}, env={"GREETING": f"r{number}"})
            wanted.add(f"r{number}")
        for number in range(patches):
            response = service.call("PATCH", path, json={"env": {"GREETING": f"p{number}"}})
            assert response.status_code == 200, response.text
            wanted.add(f"p{number}")
        for number in range(rollbacks):
            old = service.call("GET", f"{path}/versions").json()["data"][1 + number]["version"]
            response = service.call("POST", f"{path}/rollback", json={"version": old})
            assert response.status_code == 200, response.text
    log.info("%d answered at %g/s, the longest after %.2f s", len(visits.seconds), visits.rate, visits.longest)
    assert visits.failed == []
    assert posts.failed == []
    assert set(visits.seen) == wanted
    assert visits.longest < 30


def test_files_are_merged_three_way_on_redeploy(service: LiveService, builder: dict[str, Any]) -> None:
    assert service.visit(builder, "note", "POST", content="made by the app").status_code == 200
    assert service.visit(builder, "settings", "POST", content="changed by the app").status_code == 200
    put(service, builder, files={"main.py": APP, "settings.ini": "a", "kept.txt": "y", "new/file.txt": "z"})
    assert service.visit(builder, "note").text == "made by the app"
    assert service.visit(builder, "settings").text == "changed by the app"
    command = {"command": "cat kept.txt new/file.txt; ls old.txt"}
    seen = service.call("POST", f"/builders/{builder['uuid']}/exec", json=command).json()["data"]
    assert seen["output"].startswith("yz")
    assert seen["exit_code"] != 0, "what is gone from the code is removed"
    put(service, builder, files={"main.py": APP, "settings.ini": "b"})
    assert service.visit(builder, "settings").text == "b"
    assert service.visit(builder, "note").text == "made by the app"


def test_event_streams_are_closed_and_do_not_delay_the_take_over(service: LiveService, builder: dict[str, Any]) -> None:
    # On a busy machine visitors wait for a take-over for some seconds without a stream, too.
    with load(service, builder, 10) as usual:
        put(service, builder, env={"GREETING": "v2"})
    host = builder["preview_url"].split("/")[2]
    with service.dial_preview() as stream:
        stream.settimeout(PATIENCE)
        request = f"GET /events HTTP/1.1\r\nHost: {host}\r\nAccept: text/event-stream\r\n\r\n"
        stream.sendall(request.encode())
        assert b"200" in stream.recv(4096)
        with load(service, builder, 10) as visits:
            put(service, builder, env={"GREETING": "v3"})
        assert visits.longest - usual.longest < 9, "nobody waits for a stream to end by itself"
        assert usual.failed == visits.failed == []
        while stream.recv(4096):  # raises where it is cut off with a reset
            pass


@pytest.mark.parametrize(("env", "code"), [({}, 1012), pytest.param({"ABRUPT": "1"}, None, marks=pytest.mark.slow)])
def test_websockets_close_by_the_app_and_reconnect_to_the_new_version(
    service: LiveService, env: dict[str, str], code: int | None
) -> None:
    with service.deployed("sockets", {"main.py": SOCKETS}, "python3 main.py", env={"GREETING": "v1", **env}) as data:
        with websocket(service, data) as old:
            assert old.recv() == "v1"
            put(service, data, env={"GREETING": "v2", **env})
            with pytest.raises(ConnectionClosed) as closed:
                old.recv(timeout=PATIENCE)
        assert (closed.value.rcvd.code if closed.value.rcvd else None) == code
        assert not isinstance(closed.value.__cause__, ConnectionResetError), "it ends, and is not cut off"
        with websocket(service, data) as new:
            assert new.recv() == "v2"


def websocket(service: LiveService, data: dict[str, Any]) -> ClientConnection:
    return connect(f"ws://{data['preview_url'].split('/')[2]}/", sock=service.dial_preview(), open_timeout=PATIENCE)


def test_slow_request_is_answered_by_the_old_version(service: LiveService) -> None:
    slow = APP.replace(
        '        self.say(os.environ.get("GREETING"', '        time.sleep(1.5); self.say(os.environ.get("GREETING"', 1
    )
    with service.deployed("slow", {"main.py": slow}, "python3 main.py", env={"GREETING": "v1"}) as data:
        host = data["preview_url"].split("/")[2]
        with socket.create_connection(("127.0.0.1", service.preview_port), PATIENCE) as visitor:
            visitor.sendall(f"GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
            put(service, data, files=body("x")["files"], env={"GREETING": "v2"})
            answer = b""
            while piece := visitor.recv(4096):
                answer += piece
        assert answer.endswith(b"v1")
        assert service.visit(data).text == "v2"


def test_service_token_renewal_fails_no_request(service: LiveService, builder: dict[str, Any]) -> None:
    with load(service, builder, RATE / 2) as visits:
        response = service.call("POST", f"/builders/{builder['uuid']}/service-token")
    token = response.json()["data"]["service_token"]
    assert visits.failed == []
    command = {"command": "printenv SERVICE_TOKEN"}
    seen = service.call("POST", f"/builders/{builder['uuid']}/exec", json=command).json()["data"]
    assert seen["output"].strip() == token != builder["service_token"]
