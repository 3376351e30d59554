"""The ends of sandboxes are told, and nothing is kept of those that were."""

from __future__ import annotations

import asyncio
import subprocess
from pathlib import Path

import pytest

from builderd.adapters.engines.oci import exits as exits_module
from builderd.adapters.engines.oci.exits import Exits
from builderd.adapters.engines.oci.processes import Process

GONE = Process(pid=2**22 + 1, started=0)
PATIENCE = 10


async def test_nothing_is_kept_of_one_that_ended_before_it_was_watched(tmp_path: Path) -> None:
    exits = Exits(tmp_path, lambda name: True)
    exits.watch("a", GONE)
    await asyncio.wait(set(exits._watches.values()), timeout=PATIENCE)
    assert exits._watches == {}


@pytest.mark.parametrize("writes", [True, False], ids=["its shim writes", "its shim is lost"])
async def test_nothing_is_kept_of_one_whose_end_was_told(
    tmp_path: Path, writes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exits_module, "_SHIM_SECONDS", 0.01)
    exits = Exits(tmp_path, lambda name: (tmp_path / name).exists())
    exits.open()
    told = asyncio.ensure_future(anext(exits.subscribe()))
    await asyncio.sleep(0)
    with subprocess.Popen(["sleep", "1000"]) as sleeping:
        exits.watch("a", Process(sleeping.pid, started(sleeping.pid)))
        if writes:
            (tmp_path / "a").write_text("0")
        else:
            sleeping.kill()
        assert await asyncio.wait_for(told, PATIENCE) == "a"
        sleeping.kill()
    assert exits._watches == {}
    exits.close()


def started(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
