"""A sandbox that the kernel kills for the memory of the host, not at its own limit, is reported so.

The shortage is that of the service's own control group here: to the kernel, a group above is as the whole machine.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tests.contract.engine import apps
from tests.contract.engine.apps import App
from tests.engines import make_spec, until_state
from tests.small_memory import limited_memory

from builderd.adapters.engines.oci.engine.engine import OciEngine
from builderd.adapters.engines.oci.storage.layers import BuildRun
from builderd.domain.errors import EngineUnavailable
from builderd.domain.resources import Resources
from builderd.domain.sandboxes import EndCause, SandboxState
from builderd.domain.versions import Isolation

pytestmark = pytest.mark.root

SHORT = 128 << 20
#: Takes 300 MB.
HUNGRY = "python3 -c \"import time; a = bytearray(300 << 20); a[::4096] = b'x' * len(a[::4096]); time.sleep(1000)\""


@pytest.fixture
def short_of_memory(engine: OciEngine) -> Iterator[None]:
    """Let all sandboxes of the service together have less memory than one of them may."""
    groups = engine._here.cgroups
    group = Path("/sys/fs/cgroup", "" if groups.version == 2 else "memory", groups.parent.strip("/"))
    group.mkdir(exist_ok=True)
    with limited_memory(group, groups.version, SHORT):
        yield


@pytest.mark.parametrize("isolation", list(Isolation))
async def test_kill_for_the_memory_of_the_host_is_not_taken_for_the_own_limit(
    engine: OciEngine, short_of_memory: None, isolation: Isolation
) -> None:
    spec = await make_spec(engine, App(HUNGRY, apps.SILENT.behaviour), isolation=isolation)
    await engine.sandboxes.start(replace(spec, resources=Resources(cpu=1, memory=1, disk=1)))
    report = await until_state(engine, spec.id, SandboxState.EXITED)
    assert report.end
    assert (report.end.cause, report.out_of_memory) == (EndCause.HOST_OUT_OF_MEMORY, False)
    await engine.sandboxes.stop(spec.id, 0)
    assert await engine.sandboxes.report(spec.id) == report


async def test_kill_at_the_own_limit_ends_the_sandbox_as_out_of_memory(engine: OciEngine) -> None:
    spec = await make_spec(engine, App(HUNGRY, apps.SILENT.behaviour))
    await engine.sandboxes.start(spec)
    report = await until_state(engine, spec.id, SandboxState.EXITED)
    assert report.end
    assert (report.end.cause, report.out_of_memory) == (EndCause.OUT_OF_MEMORY, True)


async def test_build_killed_for_the_memory_of_the_host_is_no_failed_build(
    engine: OciEngine, short_of_memory: None
) -> None:
    run = BuildRun(
        id="b00d",
        argv=("/bin/sh", "-c", HUNGRY),
        env={},
        cwd="/",
        binds=(),
        network=False,
        cpu=1,
        memory=1 << 30,
        processes=64,
        timeout_seconds=1000,
    )
    with pytest.raises(EngineUnavailable, match="machine was out of memory"):
        await engine._here.layers._runner.run_build(run, lambda line: None)
