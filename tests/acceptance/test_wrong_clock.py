"""A service on a machine whose clock is set, by libfaketime: nothing ends too early, and nothing stays for good."""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner
from tests.acceptance.idling import eventually
from tests.acceptance.live_service import PATIENCE, PLAIN, LiveService, running

from builderd.cli.group import builderd

pytestmark = [pytest.mark.root, pytest.mark.slow]

#: Seconds: of a lease; of ``auto_stop_interval`` 1; of a wrong clock.
LEASE, IDLE, WRONG = 50, 60, 36
YEAR, HOUR = 365 * 86_400, 3_600


@dataclass
class Machine:
    service: LiveService
    offset: Path

    def set_clock(self, seconds: int) -> None:
        self.offset.write_text(f"{seconds:+d}\n")
        time.sleep(2)  # the library reads it each second

    def warning(self) -> str:
        clock = httpx.get(f"{self.service.url}/readyz", timeout=PATIENCE, **PLAIN).json()["data"]["clock"]
        return "" if clock["ready"] else clock["message"]

    def run(self, *words: str) -> str:
        """Run a command of the machine by the right time; HAProxy does not work under the library."""
        env = {**self.service.environment(), "LD_PRELOAD": ""}
        return CliRunner().invoke(builderd, self.service.words(*words), env=env, catch_exceptions=False).output

    def restart(self) -> None:
        self.service.terminate()
        self.service.start()


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    offset = tmp_path / "offset"
    offset.write_text("+0\n")
    library = "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1"
    fake = {"LD_PRELOAD": library, "FAKETIME_TIMESTAMP_FILE": str(offset), "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
    # Without the fix, waits of the interpreter for its lock end at once.
    fake |= {"FAKETIME_FORCE_MONOTONIC_FIX": "0", "FAKETIME_CACHE_DURATION": "1"}
    settings = {**fake, "BUILDERD_IDLE__FREEZE_AFTER": "0"}
    with running(LiveService(tmp_path / "data", settings, cold=True)) as service:
        yield Machine(service, offset)


@pytest.mark.parametrize(("step", "restarts"), [(YEAR, False), (2 * HOUR, True), (-HOUR, True)])
def test_a_clock_that_was_wrong_for_a_while_changes_nothing(machine: Machine, step: int, restarts: bool) -> None:
    service, begun, begun_at = machine.service, time.monotonic(), datetime.now(UTC)
    idle = service.create("idle", auto_stop_interval=1, backup_interval_hours=1)
    leased = service.create("leased", auto_stop_interval=1)
    service.call("POST", f"/builders/{leased['uuid']}/leases", json={"seconds": LEASE})
    machine.set_clock(step)
    assert "clock was set" in machine.warning()
    if restarts:
        machine.restart()
    time.sleep(max(0.0, begun + WRONG - time.monotonic()))
    assert service.builder(idle["uuid"])["status"] == service.builder(leased["uuid"])["status"] == "running"
    assert service.call("GET", f"/builders/{idle['uuid']}/backups").json()["data"] == []
    machine.set_clock(0)
    assert machine.warning() == ""
    service.wait_status(idle["uuid"], "stopped")
    assert time.monotonic() - begun >= IDLE
    service.wait_status(leased["uuid"], "stopped")
    assert time.monotonic() - begun >= LEASE + IDLE
    pages = (service.call("GET", f"/builders/{one['uuid']}/events?per_page=100") for one in (idle, leased))
    times = [datetime.fromisoformat(event["time"]) for page in pages for event in page.json()["data"]]
    assert begun_at < min(times) <= max(times) <= datetime.now(UTC)
    assert "clock:" not in machine.run("doctor")


def test_rows_that_a_wrong_clock_left_in_the_future_are_mended(machine: Machine) -> None:
    service = machine.service
    service.terminate()
    (service.data_dir / "clock.json").unlink()
    machine.set_clock(YEAR)
    service.start()
    data = service.create("later", auto_stop_interval=1, backup_interval_hours=1)
    service.call("POST", f"/builders/{data['uuid']}/leases", json={"seconds": LEASE})
    service.terminate()
    machine.set_clock(0)
    service.start()
    assert "rows may lie in the future" in machine.warning()
    assert "times lie in the future" in machine.run("doctor")
    assert "stop it first" in machine.run("clock", "repair", "--yes")
    service.terminate()
    with contextlib.closing(sqlite3.connect(service.data_dir / "builderd.db")) as database, database:
        hours_ago = datetime.now(UTC) - timedelta(hours=2)
        database.execute("UPDATE builders SET created_at = ?", (hours_ago.strftime("%F %T.%f"),))
    machine.run("clock", "repair", "--yes")
    begun = time.monotonic()
    service.start()
    assert machine.warning() == ""
    eventually(lambda: service.builder(data["uuid"])["last_backup_at"] is not None)
    service.wait_status(data["uuid"], "stopped")
    assert time.monotonic() - begun >= LEASE + IDLE - 10
