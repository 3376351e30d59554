"""Work begun on the machine is over when its caller goes on, and nothing is kept of finished work."""

from __future__ import annotations

import asyncio
import shutil
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from builderd.code.model import make_bundle
from builderd.core.errors import EngineUnavailable
from builderd.core.ids import DiskId
from builderd.core.resources import GB
from builderd.engine.oci.engine.engine import OciEngine
from builderd.engine.oci.engine.machine import Machine, find_runtimes
from builderd.engine.port import EngineOptions, Readiness
from builderd.versions.model import Isolation

#: No sandbox runs.
UNUSED = SimpleNamespace(find=lambda _: None, refuse_while_used=print, users_of=lambda _: [])
ONE, TWO = DiskId("one"), DiskId("two")


class SlowPart:
    """Part in the place of disks: it does its work when it may go on."""

    def __init__(self) -> None:
        self.go_on = threading.Event()
        self.done: list[str] = []

    def __getattr__(self, name: str) -> Callable[..., None]:
        def work(*_: object, **__: object) -> None:
            self.go_on.wait(10)
            self.done.append(name)

        return work


CALLS: list[tuple[str, Callable[[OciEngine], Coroutine[Any, Any, None]]]] = [
    ("create", lambda engine: engine.disks.create_disk(ONE, GB)),
    ("put_bundle", lambda engine: engine.disks.put_bundle(ONE, make_bundle([]))),
    ("mark_bundle", lambda engine: engine.disks.mark_bundle(ONE, "hash")),
    ("clone", lambda engine: engine.disks.clone_disk(ONE, TWO, GB)),
    ("delete", lambda engine: engine.disks.delete_disk(ONE)),
]


@pytest.mark.parametrize(("work", "call"), CALLS)
async def test_a_call_that_is_cancelled_leaves_nothing_to_be_made_after_it(
    tmp_path: Path, work: str, call: Callable[[OciEngine], Coroutine[Any, Any, None]]
) -> None:
    part = SlowPart()
    engine = OciEngine(EngineOptions(tmp_path, inside_port=8080))
    engine._machine = cast("Machine", SimpleNamespace(disks=part, runs=UNUSED, store=part))
    calling = asyncio.ensure_future(call(engine))
    await asyncio.sleep(0.01)
    calling.cancel()
    await asyncio.sleep(0.01)
    assert not calling.done()
    part.go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await calling
    assert part.done == [work]


async def test_a_disk_that_is_full_when_the_engine_opens_is_a_fault_of_the_machine_and_it_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(settings: EngineOptions) -> Machine:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("builderd.engine.oci.engine.engine.Machine", full)
    engine = OciEngine(EngineOptions(tmp_path, inside_port=8080))
    for _ in range(2):
        with pytest.raises(EngineUnavailable, match="No space left on device"):
            await engine.prepare(lambda line: None)
        assert f"df -h {tmp_path}" in engine.readiness().message


def test_an_engine_whose_apps_cannot_write_is_not_ready_and_says_why(tmp_path: Path) -> None:
    reasons = [Readiness(False, "The store is full.", full=True), None]
    engine = OciEngine(EngineOptions(tmp_path, inside_port=8080))
    engine._machine = cast("Machine", SimpleNamespace(store=SimpleNamespace(failure=lambda: reasons.pop(0))))
    engine._readiness = Readiness(True, "ready")
    assert engine.readiness() == Readiness(False, "The store is full.", full=True)
    assert engine.readiness().ready


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    names: set[str] = set()
    monkeypatch.setattr(shutil, "which", lambda name, path: f"/usr/bin/{name}" if name in names else None)
    return names


def runtimes() -> dict[str, str]:
    """Return the runtime that serves each isolation."""
    found = find_runtimes(Path("/state"))
    return {isolation.value: found[isolation.value].name for isolation in Isolation if isolation.value in found}


def lack(isolation: Isolation) -> str | None:
    engine = OciEngine(EngineOptions(Path("/data"), inside_port=8080))
    engine._machine = cast("Any", SimpleNamespace(runtimes=find_runtimes(Path("/state"))))
    return engine.sandboxes.supports(isolation)


def test_runc_stands_in_for_crun(installed: set[str]) -> None:
    installed.update({"runc", "runsc"})
    assert runtimes() == {"standard": "runc", "strong": "runsc"}


def test_without_gvisor_nothing_else_isolates_strongly(installed: set[str]) -> None:
    installed.update({"crun", "runc"})
    assert runtimes() == {"standard": "crun"}
    assert lack(Isolation.STANDARD) is None
    assert "apt-get install runsc" in (lack(Isolation.STRONG) or "")
