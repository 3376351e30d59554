"""Errors that callers of a joined command get when it does not begin."""

from __future__ import annotations

import asyncio
import json
import os
import resource
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from builderd.adapters.engines.oci.runtime.command import Runtime
from builderd.adapters.engines.oci.runtime.join import READY, STREAMS
from builderd.adapters.engines.oci.runtime.joined import JoinedExecution, _in_memory
from builderd.adapters.engines.oci.runtime.records import Record
from builderd.adapters.engines.oci.runtime.runs import Runs
from builderd.domain.errors import BuilderdError, EngineUnavailable, InvalidState
from builderd.domain.ids import DiskId
from builderd.domain.processes import ProcessSpec
from builderd.linux.processes import boot_id, find_process

KILLED = EngineUnavailable("The launcher failed: the joining process was killed.")


class Host:
    """A launcher whose joining process reports, closes its ends, and is known to have ended a while later."""

    def __init__(self, folder: Path, report: bytes, end: Callable[[], int]) -> None:
        self.report = report
        self.end = end
        self.killed: list[str] = []
        process = {"user": {"uid": 1000}, "env": ["HOME=/home/app"]}
        (folder / "config.json").write_text(json.dumps({"process": process}))
        cgroups = SimpleNamespace(
            version=1,
            open_inner=lambda *_: [],
            close_inner=lambda _: None,
            discard_inner=lambda _: None,
            kill=self.killed.append,
            moves=SimpleNamespace(expected=nullcontext),
        )
        runtime = Runtime("crun", "/usr/bin/crun", folder)
        self.runs = SimpleNamespace(
            cgroups=cgroups,
            config=SimpleNamespace(bundle=lambda _: folder),
            commands=SimpleNamespace(runtime=lambda _: runtime),
            launcher=self,
        )

    async def join(self, name: str, descriptors: Sequence[int]) -> int:
        os.write(descriptors[STREAMS], self.report)
        for descriptor in set(descriptors):
            os.close(descriptor)
        await asyncio.sleep(0.05)
        return self.end()

    async def kill(self, name: str) -> None:
        pytest.fail("nothing runs any more")


def make_record() -> Record:
    record = Record("ab", "builder", DiskId("disk"), "crun", slot=0, ip="10.64.8.2", port=80, boot=boot_id())
    return replace(record, process=find_process(os.getpid()))


def be_killed() -> int:
    raise KILLED


@pytest.mark.parametrize(
    ("report", "end", "error"),
    [
        (b"", be_killed, KILLED),
        (b"", lambda: 127, InvalidState("The sandbox has ended.")),
        (b"ended it is gone", lambda: 127, InvalidState("The sandbox has ended.")),
        (READY + b"failed 0 no rights", lambda: 127, InvalidState("The command could not be started: no rights")),
        (b"failed 1 enter", lambda: 127, InvalidState("The command could not be started: enter: " + os.strerror(1))),
    ],
    ids=["killed", "silent", "ended", "failed", "refused"],
)
async def test_a_killed_joining_process_is_not_blamed_on_the_sandbox(
    tmp_path: Path, report: bytes, end: Callable[[], int], error: BuilderdError
) -> None:
    """And what it may have started, of which nobody knows, is killed with its group."""
    host = Host(tmp_path, report, end)
    command = JoinedExecution(cast("Runs", host.runs), make_record(), ProcessSpec(("true",)))
    with pytest.raises(type(error)) as raised:
        await command.begin()
    assert str(raised.value) == str(error)
    assert host.killed == ([f"ab/{command._name}"] if error is KILLED else [])
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_a_document_that_does_not_fit_is_an_error_and_leaves_no_descriptor() -> None:
    before, limits = len(list(Path("/proc/self/fd").iterdir())), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(OSError, match="too large"):
            _in_memory(b"x" * 20_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    memory = _in_memory(b"x" * 20_000)
    assert os.read(memory, 30_000) == b"x" * 20_000
    os.close(memory)
