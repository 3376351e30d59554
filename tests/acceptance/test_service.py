"""The service as its operator knows it: it can be killed, restarted, taken down, and have a neighbour."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from tests.acceptance import scenarios
from tests.acceptance.host_traces import assert_traces, traces
from tests.acceptance.live_service import LiveService, cold_service
from tests.acceptance.on_engines import OnIncus, OwnEngine

pytestmark = pytest.mark.root


@pytest.mark.engines
@pytest.mark.parametrize(
    "end",
    [
        pytest.param(LiveService.kill, id="SIGKILL"),
        pytest.param(LiveService.terminate, id="SIGTERM", marks=pytest.mark.slow),
    ],
)
def test_apps_and_previews_keep_serving_without_the_service(
    engine: OwnEngine | OnIncus, data_dir: Path, end: Callable[[LiveService], object]
) -> None:
    with engine.running(data_dir) as service:
        scenarios.absence_of_the_service(service, end)


@pytest.mark.engines
def test_down_removes_all_host_traces_and_serve_restarts_apps(engine: OwnEngine | OnIncus, data_dir: Path) -> None:
    with engine.running(data_dir) as service:
        data = service.create("comes-back")
        service.call("POST", f"/builders/{data['uuid']}/exec", json={"command": "echo kept > note"})
        service.down()
        left = traces(service)
        gone = ("running",) if engine.is_incus else ("mounts", "links", "cgroups", "processes")
        assert_traces(service, {**left, **{name: [] for name in gone}})
        with pytest.raises(httpx.TransportError):
            service.visit(data)
        service.start()
        service.wait_served(data)
        kept = service.call("POST", f"/builders/{data['uuid']}/exec", json={"command": "cat note"})
        assert kept.json()["data"]["output"] == "kept\n"


@pytest.mark.engines
@pytest.mark.slow
def test_two_services_on_one_machine_are_independent(engine: OwnEngine | OnIncus, tmp_path: Path) -> None:
    with engine.running(tmp_path / "one") as one, engine.running(tmp_path / "two") as two:
        first = one.create("same-name", env={"GREETING": "one"})
        second = two.create("same-name", env={"GREETING": "two"})
        assert one.visit(first).text == "one"
        assert two.visit(second).text == "two"
        # The address that it sends from: its name may stand for a loopback address.
        own = "import socket; s = socket.socket(type=2); s.connect(('192.0.2.1', 9)); print(*s.getsockname())"
        address = scenarios.run(two, second["uuid"], f'python3 -c "{own}"')[1].split()[0]
        reach = f"curl -s -m 2 http://{address}:8000/ || echo refused"
        answer = one.call("POST", f"/builders/{first['uuid']}/exec", json={"command": reach})
        assert answer.json()["data"]["output"].strip() == "refused"
        one.down()
        assert two.visit(second).text == "two"


def test_second_service_on_the_data_directory_is_refused(service: LiveService) -> None:
    assert "already" in LiveService(service.data_dir).refused(1)


def test_port_in_use_is_named(service: LiveService, data_dir: Path) -> None:
    assert str(service.port) in LiveService(data_dir, port=service.port).refused(1)


def test_readiness_is_notified_once_and_not_passed_to_apps(data_dir: Path, tmp_path: Path) -> None:
    """A runtime that knew where would wait for its app to say so, and let it speak for the service."""
    address = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as hears:
        hears.bind(address)
        hears.setblocking(False)
        with cold_service(data_dir, NOTIFY_SOCKET=address) as service:
            assert hears.recv(100) == b"READY=1"
            service.create("unheard")
            knowing = [path.parent.name for path in Path("/proc").glob("[0-9]*/environ") if address in _text(path)]
            assert service.process
            assert knowing == [str(service.process.pid)]
            with pytest.raises(BlockingIOError):
                hears.recv(100)


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
