"""Idle builders in a live service."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import httpx
from tests.acceptance.live_service import PATIENCE, TINY_APP, LiveService
from tests.acceptance.load import beside

#: Says how often it was started, and counts while it waits.
COUNTING_APP = f"""\
import pathlib
starts = pathlib.Path("starts.txt")
starts.write_text(str(int(starts.read_text()) + 1 if starts.exists() else 1))
{TINY_APP.replace('os.environ.get("GREETING", "hello")', "starts.read_text()")}"""

#: For so many seconds at least a visitor waits for what is asleep, before there is a page.
HELD = 20


def eventually(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def events(service: LiveService, data: Mapping[str, Any], *kinds: str) -> list[dict[str, Any]]:
    """Return the builder's events of these kinds, newest first."""
    answer = service.call("GET", f"/builders/{data['uuid']}/events?per_page=100")
    return [event for event in answer.json()["data"] if event["type"] in kinds]


def told_at(service: LiveService, data: Mapping[str, Any], kind: str) -> list[datetime]:
    """Return the times of the builder's events of this kind, latest first."""
    return [datetime.fromisoformat(event["time"]) for event in events(service, data, kind)]


def until_reported(service: LiveService, data: Mapping[str, Any], kind: str) -> list[dict[str, Any]]:
    """Wait for an event of this kind; return all of them, newest first.

    Visitors are let in before a thaw is recorded.
    """
    eventually(lambda: bool(events(service, data, kind)))
    return events(service, data, kind)


def patient_visit(service: LiveService, data: Mapping[str, Any]) -> httpx.Response:
    """Visit, and visit again if the service takes longer to start than a request is paused."""
    while True:
        begun = time.monotonic()
        answer = service.visit(data)
        if answer.status_code != 503 or time.monotonic() - begun < HELD:
            return answer


def until_frozen(service: LiveService, data: Mapping[str, Any]) -> None:
    def is_frozen() -> bool:
        return len(events(service, data, "sandbox.frozen")) > len(events(service, data, "sandbox.thawed"))

    eventually(is_frozen)


@dataclass
class Pace:
    """``longest``: for how many seconds the machine let this process do nothing."""

    longest: float = 0.0


@contextlib.contextmanager
def pace() -> Iterator[Pace]:
    """Measured until the block ends: a service that stalls cannot note that a builder is used."""
    told = Pace()

    def watch(over: threading.Event) -> None:
        last = time.monotonic()
        while not over.wait(0.02):
            now = time.monotonic()
            told.longest, last = max(told.longest, now - last), now

    with beside(watch):
        yield told


def make_idle(service: LiveService, data: Mapping[str, Any], minutes: int = 60) -> None:
    """Set the builder's last use back by this time.

    A running service may record the visits of the last moments again.
    """
    if service.is_up:
        time.sleep(2)
    with contextlib.closing(sqlite3.connect(service.data_dir / "builderd.db", timeout=10)) as database, database:
        ago = f"-{minutes} minutes"
        database.execute(
            "UPDATE builders SET last_active_at = datetime('now', ?) WHERE id = ?",
            (ago, data["uuid"]),
        )


def until_idled(service: LiveService, data: Mapping[str, Any]) -> dict[str, Any]:
    """Made idle again from time to time, since a visit may be noted once more."""
    deadline = time.monotonic() + PATIENCE
    while True:
        make_idle(service, data)
        again = time.monotonic() + 8
        while time.monotonic() < again:
            shown = service.builder(data["uuid"])
            if shown["status"] == "stopped":
                return shown
            time.sleep(0.05)
        assert time.monotonic() < deadline, f"it does not idle out: {shown}"
