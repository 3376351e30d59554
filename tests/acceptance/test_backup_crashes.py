"""Kill -9 of the service at every step of a backup, a restore and a recovery: the next one ends what was begun.

The app goes on, whatever happens to the service; what was written down before the backup is there after the restore;
and no disk is left that nobody has.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from tests.acceptance.conftest import ServiceOfModule
from tests.acceptance.live_service import PATIENCE, LiveService
from tests.acceptance.on_engines import OnIncus, OwnEngine
from tests.acceptance.scenarios import run

pytestmark = [pytest.mark.root, pytest.mark.slow, pytest.mark.engines]

TAKING = [f"{step}.{moment}" for step in ("CopyDisk", "SaveCopy") for moment in ("begun", "done", "recorded")]
RESTORING = ["FillDisk.begun", "FillDisk.done", "FillDisk.recorded", "HandOver.begun", "HandOver.recorded"]
RECOVERING = ["RecoverDisk.begun", "RecoverDisk.recorded", *RESTORING]


@pytest.fixture
def crashing(
    engine: OwnEngine | OnIncus, service_of_module: ServiceOfModule, request: pytest.FixtureRequest
) -> LiveService:
    settings = {"BUILDERD_BACKUP__REPOSITORY": request.getfixturevalue("rest_on_incus").url} if engine.is_incus else {}
    return service_of_module(engine, **settings)


@pytest.fixture
def builder(engine: OwnEngine | OnIncus, crashing: LiveService) -> Iterator[dict[str, Any]]:
    """A running builder with a note that says ``before``."""
    if not crashing.is_up:
        crashing.start()
    data = crashing.create("crash-test")
    _write(crashing, data, "before")
    yield data
    if not crashing.is_up:
        crashing.start()
    crashing.call("DELETE", f"/builders/{data['uuid']}?purge=true")
    _until(lambda: not engine.disks(crashing), "a disk is left over")


def _write(service: LiveService, data: dict[str, Any], note: str) -> None:
    assert run(service, data["uuid"], f"echo {note} > note; sync note") == (0, "")


def _note(service: LiveService, data: dict[str, Any]) -> str:
    return run(service, data["uuid"], "cat note")[1].strip()


def _backups(service: LiveService, data: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = service.call("GET", f"/builders/{data['uuid']}/backups").json()["data"]
    return found


def _restore(service: LiveService, data: dict[str, Any], backup: dict[str, Any]) -> None:
    answer = service.call("POST", f"/builders/{data['uuid']}/backups/{backup['id']}/restore")
    assert answer.status_code == 200, answer.text


def _until(holds: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


def _killed_at(service: LiveService, fault: str, ask: Callable[[], object]) -> None:
    """Kill the service at this fault point, and start it again."""
    service.terminate()
    service.start(fault)
    with contextlib.suppress(httpx.TransportError):
        ask()
    service.wait_dead()
    assert service.process is not None
    assert service.process.returncode == -9, service.log_tail()
    service.start()


@pytest.mark.parametrize("fault", TAKING)
def test_interrupted_backup_is_finished_after_restart(
    engine: OwnEngine | OnIncus, crashing: LiveService, builder: dict[str, Any], fault: str
) -> None:
    started = run(crashing, builder["uuid"], "cut -d' ' -f22 /proc/1/stat")
    path = f"/builders/{builder['uuid']}/backups"
    _killed_at(crashing, fault, lambda: crashing.call("POST", path))
    assert crashing.visit(builder).status_code == 200, "it stands still"
    _until(lambda: [one["status"] for one in _backups(crashing, builder)] == ["done"], "the backup is not ended")
    _until(lambda: len(engine.disks(crashing)) == 1, "a copy is left over")
    assert run(crashing, builder["uuid"], "cut -d' ' -f22 /proc/1/stat") == started
    (backup,) = _backups(crashing, builder)
    _write(crashing, builder, "after")
    _restore(crashing, builder, backup)
    assert _note(crashing, builder) == "before"


@pytest.mark.parametrize("fault", RESTORING)
def test_interrupted_restore_is_finished_after_restart(
    engine: OwnEngine | OnIncus, crashing: LiveService, builder: dict[str, Any], fault: str
) -> None:
    path = f"/builders/{builder['uuid']}/backups"
    backup = crashing.call("POST", path).json()["data"]
    _write(crashing, builder, "after")
    _killed_at(crashing, fault, lambda: crashing.call("POST", f"{path}/{backup['id']}/restore"))
    _until(lambda: crashing.builder(builder["uuid"])["version"] == 2, "the restore is not ended")
    crashing.wait_served(builder)
    assert _note(crashing, builder) == "before"
    _until(lambda: len(engine.disks(crashing)) == 1, "a disk is left over")
    (safety,) = (one for one in _backups(crashing, builder) if one["kind"] == "before_restore")
    _restore(crashing, builder, safety)
    assert _note(crashing, builder) == "after"


@pytest.mark.parametrize("fault", RECOVERING)
def test_interrupted_recovery_is_finished_after_restart(
    engine: OwnEngine | OnIncus, crashing: LiveService, builder: dict[str, Any], fault: str
) -> None:
    uuid = builder["uuid"]
    assert crashing.call("POST", f"/builders/{uuid}/backups").status_code == 201
    assert crashing.call("POST", f"/builders/{uuid}/stop").status_code == 200
    _until(lambda: len(engine.disks(crashing)) == 1, "a copy is left over")
    engine.destroy(crashing, *engine.disks(crashing))
    _killed_at(crashing, fault, lambda: crashing.call("POST", f"/builders/{uuid}/start"))
    crashing.wait_status(uuid, "running")
    crashing.wait_served(builder)
    assert _note(crashing, builder) == "before"
    _until(lambda: len(engine.disks(crashing)) == 1, "a disk is left over")
