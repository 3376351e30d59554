"""The helper's program runs with the modules that are sent, and nothing else; volumes in use stay attached."""

from __future__ import annotations

import asyncio
import io
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from tests.unit.adapters.engines.incus.scripted_incus import ScriptedIncus, machine_on

from builderd.adapters.engines.incus import helper as module
from builderd.adapters.engines.incus.helper import Helper, packed_program


def test_sent_modules_are_all_that_the_program_needs(tmp_path: Path) -> None:
    with zipfile.ZipFile(io.BytesIO(packed_program())) as archive:
        archive.extractall(tmp_path)
    program = "builderd.adapters.engines.incus.helper_program"
    request = json.dumps({"task": "list_files", "volume": "none", "path": "", "skip": 0, "count": 1}).encode() + b"\n"
    # Isolated from installed packages, as in the instance.
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from {program} import main; main()"
    done = subprocess.run([sys.executable, "-ISc", code], input=request, capture_output=True, check=True)
    assert json.loads(done.stdout)["error"] == "OSError"


def helper_on(incus: ScriptedIncus, *volumes: str) -> Helper:
    """Return a helper whose instance runs with these volumes, which nobody uses."""
    helper = machine_on(incus).helper("node2")
    incus.has_instance(helper.name, volumes=volumes)
    helper._ready = True
    helper._attached.update(dict.fromkeys(volumes, 0))
    return helper


async def test_idle_volumes_are_let_go_and_attached_again_for_a_task() -> None:
    incus = ScriptedIncus()
    helper = helper_on(incus, "disk-idle", "disk-used")
    async with helper._using(["disk-used"]):
        await helper.let_go_idle()
        assert incus.attached(helper.name) == {"disk-used"}
        # Each task counts on the same dict.
        async with helper._using(["disk-idle", "disk-used"]):
            await helper.let_go_idle()
            assert incus.attached(helper.name) == {"disk-idle", "disk-used"}
    await helper.let_go_idle()
    assert incus.attached(helper.name) == set()


async def test_task_that_begins_meanwhile_has_its_volume_attached() -> None:
    incus = ScriptedIncus()
    helper = helper_on(incus, "disk-1")
    tasks: list[asyncio.Task[set[str]]] = []

    async def work() -> set[str]:
        async with helper._using(["disk-1"]):
            await letting_go
            return incus.attached(helper.name)

    async def before(method: str, path: str) -> None:
        if not tasks:
            tasks.append(asyncio.create_task(work()))
            # Up to where it waits for the lock.
            for _ in range(10):
                await asyncio.sleep(0)

    incus.before = before
    letting_go = asyncio.create_task(helper.let_go_idle())
    await letting_go
    assert await tasks[0] == {"disk-1"}


async def test_volume_whose_task_ends_meanwhile_is_detached_before_its_deletion() -> None:
    incus = ScriptedIncus()
    helper = helper_on(incus, "disk-idle", "disk-used")
    using = helper._using(["disk-used"])
    await using.__aenter__()

    async def before(method: str, path: str) -> None:
        if helper._attached.get("disk-used"):
            await using.__aexit__(None, None, None)

    incus.before = before
    await helper.let_go_idle()
    assert incus.attached(helper.name) == {"disk-used"}
    await helper.detach("disk-used")
    assert incus.attached(helper.name) == set()


async def test_helper_whose_member_is_away_again_is_left_alone() -> None:
    incus = ScriptedIncus()
    helper = helper_on(incus, "disk-1")
    incus.instances[helper.name] |= {"status": "Error", "config": None, "devices": None}
    await helper.let_go_idle()
    assert not incus.changes


async def test_uses_are_counted_on_after_the_helper_was_looked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run(*_: object) -> tuple[int, bytes]:
        return 0, b""

    monkeypatch.setattr(module, "run_to_end", run)
    incus = ScriptedIncus()
    helper = helper_on(incus)
    async with helper._using(["disk-1"]):
        helper._ready = False
        await helper.open()
        assert helper._attached == {"disk-1": 1}
    assert helper._attached == {"disk-1": 0}
