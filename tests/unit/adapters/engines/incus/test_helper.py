"""The helper's program runs with the modules that are sent, and nothing else; volumes that are deleted are detached."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from tests.unit.adapters.engines.incus.scripted_incus import ScriptedIncus, machine_on

from builderd.adapters.engines.incus import helper as module
from builderd.adapters.engines.incus.helper import packed_program


def test_sent_modules_are_all_that_the_program_needs(tmp_path: Path) -> None:
    with zipfile.ZipFile(io.BytesIO(packed_program())) as archive:
        archive.extractall(tmp_path)
    program = "builderd.adapters.engines.incus.helper_program"
    request = json.dumps({"task": "list_files", "volume": "none", "path": "", "skip": 0, "count": 1}).encode() + b"\n"
    # Isolated from installed packages, as in the instance.
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from {program} import main; main()"
    done = subprocess.run([sys.executable, "-ISc", code], input=request, capture_output=True, check=True)
    assert json.loads(done.stdout)["error"] == "OSError"


async def test_volume_that_an_earlier_service_attached_is_detached_and_others_stay() -> None:
    incus = ScriptedIncus()
    helper = machine_on(incus).helper("node2")
    incus.has_instance(helper.name, volumes=["disk-1", "disk-2"])
    await helper.detach("disk-1")
    assert incus.attached(helper.name) == {"disk-2"}
    await helper.detach("disk-1")
    assert len(incus.changes) == 1


async def test_uses_are_counted_on_after_the_helper_was_looked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run(*_: object) -> tuple[int, bytes]:
        return 0, b""

    monkeypatch.setattr(module, "run_to_end", run)
    incus = ScriptedIncus()
    helper = machine_on(incus).helper("node2")
    incus.has_instance(helper.name)
    helper._ready = True
    async with helper._using(["disk-1"]):
        helper._ready = False
        await helper.open()
        assert helper._attached == {"disk-1": 1}
    assert helper._attached == {"disk-1": 0}
