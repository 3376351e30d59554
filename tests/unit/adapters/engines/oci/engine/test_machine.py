"""Runtimes that a machine has, and reasons for those that it lacks."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from builderd.adapters.engines.oci.engine.engine import OciEngine
from builderd.adapters.engines.oci.engine.machine import find_runtimes
from builderd.domain.versions import Isolation
from builderd.ports.engine import EngineOptions


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


def test_crun_is_preferred_and_gvisor_isolates_strongly(installed: set[str]) -> None:
    installed.update({"crun", "runc", "runsc"})
    assert runtimes() == {"standard": "crun", "strong": "runsc"}
    assert (lack(Isolation.STANDARD), lack(Isolation.STRONG)) == (None, None)


def test_runc_stands_in_for_crun(installed: set[str]) -> None:
    installed.update({"runc", "runsc"})
    assert runtimes() == {"standard": "runc", "strong": "runsc"}


def test_without_gvisor_nothing_else_isolates_strongly(installed: set[str]) -> None:
    installed.update({"crun", "runc"})
    assert runtimes() == {"standard": "crun"}
    assert lack(Isolation.STANDARD) is None
    assert "apt-get install runsc" in (lack(Isolation.STRONG) or "")


def test_gvisor_is_not_a_standard_runtime(installed: set[str]) -> None:
    installed.add("runsc")
    assert "apt-get install crun" in (lack(Isolation.STANDARD) or "")
