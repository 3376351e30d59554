"""Exits of sandboxes are reported, and nothing is kept of ended ones."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import AsyncMock

import pytest

from builderd.adapters.engines.oci.runtime import ending as exits_module
from builderd.adapters.engines.oci.runtime.ending import Exits
from builderd.linux.processes import Process

GONE = Process(pid=2**22 + 1, started=0)
PATIENCE = 10


async def test_nothing_is_kept_of_one_that_ended_before_it_was_watched() -> None:
    exits = Exits(lambda name: True, AsyncMock())
    exits.watch("a", GONE, GONE)
    await asyncio.wait(set(exits._watches.values()), timeout=PATIENCE)
    assert exits._watches == {}


@pytest.fixture
def process() -> Iterator[Process]:
    with subprocess.Popen(["sleep", "1000"]) as sleeping:
        yield Process(sleeping.pid, started(sleeping.pid))
        sleeping.kill()


@pytest.fixture
def shim(process: Process) -> Iterator[Process]:
    with subprocess.Popen(["sleep", "1000"]) as sleeping:
        yield Process(sleeping.pid, started(sleeping.pid))
        sleeping.kill()


@pytest.mark.parametrize("killed", ["shim", "process shim", "process"])
async def test_exit_is_reported_once_and_forgotten(
    process: Process, shim: Process, killed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shim that hangs after its sandbox is not waited for without end."""
    monkeypatch.setattr(exits_module, "_EXIT_FILE_SECONDS", 0.01)
    end_unmonitored = AsyncMock()
    exits = Exits(lambda name: end_unmonitored.await_count > 0, end_unmonitored)
    told: list[str] = []
    listening = asyncio.create_task(hear(exits, told))
    waiting = asyncio.create_task(exits.wait("a", PATIENCE))
    await asyncio.sleep(0)
    exits.watch("a", process, shim)
    for name in killed.split():
        {"process": process, "shim": shim}[name].kill()
    async with asyncio.timeout(PATIENCE):
        while not told:
            await asyncio.sleep(0.005)
    await asyncio.sleep(0.05)
    assert await waiting
    assert told == ["a"]
    assert end_unmonitored.await_count == 1
    assert exits._watches == {}
    listening.cancel()
    exits.close()


async def hear(exits: Exits, told: list[str]) -> None:
    async for name in exits.subscribe():
        told.append(name)  # noqa: PERF401 -- each as it comes


def started(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
