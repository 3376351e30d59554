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


async def test_nothing_is_kept_of_one_that_ended_before_it_was_watched(tmp_path: Path) -> None:
    exits = Exits(tmp_path, lambda name: True, AsyncMock(return_value=False))
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


@pytest.mark.parametrize(
    "killed",
    [
        pytest.param((), id="its shim writes"),
        pytest.param(("shim",), id="its shim is killed"),
        pytest.param(("process", "shim"), id="both are killed"),
        pytest.param(("process",), id="its shim hangs"),
    ],
)
async def test_exit_is_reported_once_and_forgotten(
    tmp_path: Path, process: Process, shim: Process, killed: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exits_module, "_EXIT_FILE_SECONDS", 0.01)
    end_unmonitored = AsyncMock(return_value=True)
    exits = Exits(tmp_path, lambda name: (tmp_path / name).exists(), end_unmonitored)
    exits.open()
    told: list[str] = []
    listening = asyncio.create_task(hear(exits, told))
    await asyncio.sleep(0)
    exits.watch("a", process, shim)
    if not killed:
        (tmp_path / "a").write_text("0")
    for name in killed:
        {"process": process, "shim": shim}[name].kill()
    async with asyncio.timeout(PATIENCE):
        while not told:
            await asyncio.sleep(0.005)
    await asyncio.sleep(0.05)
    assert told == ["a"]
    assert end_unmonitored.await_count == bool(killed)
    assert exits._watches == {}
    listening.cancel()
    exits.close()


async def test_a_shim_that_wrote_the_end_down_is_not_lost(tmp_path: Path, process: Process, shim: Process) -> None:
    end_unmonitored = AsyncMock(return_value=False)
    exits = Exits(tmp_path, lambda name: False, end_unmonitored)
    told: list[str] = []
    listening = asyncio.create_task(hear(exits, told))
    await asyncio.sleep(0)
    exits.watch("a", process, shim)
    shim.kill()
    await asyncio.wait(set(exits._watches.values()), timeout=PATIENCE)
    assert (told, exits._watches) == ([], {})
    listening.cancel()


async def hear(exits: Exits, told: list[str]) -> None:
    async for name in exits.subscribe():
        told.append(name)  # noqa: PERF401 -- each as it comes


def started(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
