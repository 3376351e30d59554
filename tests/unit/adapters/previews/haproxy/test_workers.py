"""Workers that a reload has replaced get commands too, and delay nothing while they end."""

from __future__ import annotations

from pathlib import Path

import pytest

from builderd.adapters.previews.haproxy import process, runtime_api, workers
from builderd.adapters.previews.haproxy.options import ProxyFiles
from builderd.adapters.previews.haproxy.process import Processes
from builderd.adapters.previews.haproxy.workers import Workers

CLOSED = "Can't connect to the target CLI!"


@pytest.mark.parametrize("ends", [True, False], ids=["that ends", "that stays"])
async def test_ending_worker_does_not_block_changes(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, *, ends: bool
) -> None:
    told: list[str] = []
    old: list[tuple[int, ...]] = [(7,), (7,), () if ends else (7,)]

    async def ask(socket: Path, command: str) -> str:
        told.append(command)
        return CLOSED if command.startswith("@!7") else ""

    async def find(files: ProxyFiles) -> Processes:
        return Processes(1, old.pop(0) if len(old) > 1 else old[0])

    monkeypatch.setattr(runtime_api, "ask", ask)
    monkeypatch.setattr(process, "find", find)
    monkeypatch.setattr(workers, "EXIT_TIMEOUT", 0.1)
    all_of_them = Workers(ProxyFiles(Path("/p")))
    await all_of_them.refresh()
    await all_of_them.set(Path("/p/routes.map"), "a.localhost", "stopped|public|-|-|-|-")
    assert told[0].startswith("set map")
    assert any(command.startswith("@!7 ") for command in told)
    assert ("takes no changes" in caplog.text) is not ends
