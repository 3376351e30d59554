"""The fake engine's own controls; what it shares with every engine is in tests/contract/engine."""

from __future__ import annotations

import asyncio

import pytest
from tests.fakes.engine import FakeEngine
from tests.fakes.sandboxes import Behaviour

from builderd.domain.errors import NoCapacity
from builderd.domain.ids import BuilderId, DiskId, SandboxId, new_sandbox_id
from builderd.domain.layers import BuildOutcome, LayerPlan
from builderd.domain.resources import Resources
from builderd.domain.sandboxes import EndCause, SandboxSpec, SandboxState
from builderd.domain.versions import Isolation


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


async def start(engine: FakeEngine, entrypoint: str = "app") -> SandboxId:
    await engine.create_disk(DiskId("d"), 1)
    sandbox = new_sandbox_id()
    spec = SandboxSpec(sandbox, BuilderId("b"), DiskId("d"), "h", entrypoint, 8000, {}, Resources(), Isolation.STANDARD)
    await engine.start(spec)
    return sandbox


async def test_an_app_listens_after_so_many_looks(engine: FakeEngine) -> None:
    engine.behave("app", Behaviour(listens_at=2))
    sandbox = await start(engine)
    assert not (await engine.listening(sandbox)).sockets
    assert (await engine.listening(sandbox)).reachable(8000)


async def test_behaviours_follow_each_other_and_the_last_one_stays(engine: FakeEngine) -> None:
    engine.behave("app", Behaviour(exits_at=1, exit_code=1), Behaviour(exits_at=1, exit_code=2))
    codes = []
    for _ in range(3):
        report = await engine.report(await start(engine))
        codes.append(report.end and report.end.exit_code)
    assert codes == [1, 2, 2]


async def test_a_planned_failure_is_raised_once(engine: FakeEngine) -> None:
    engine.fail_next("start", NoCapacity("full"))
    with pytest.raises(NoCapacity):
        await start(engine)
    assert await start(engine)


async def test_external_end_is_reported(engine: FakeEngine) -> None:
    sandbox = await start(engine)
    exits = engine.exits()
    told = asyncio.ensure_future(anext(exits))
    await asyncio.sleep(0)
    engine.restart_host()
    assert await told == sandbox
    end = (await engine.report(sandbox)).end
    assert end
    assert end.cause is EndCause.HOST_RESTARTED


async def test_a_lost_sandbox_is_absent_and_a_half_made_one_partial(engine: FakeEngine) -> None:
    sandbox = await start(engine)
    engine.leave_half_made(sandbox)
    assert (await engine.report(sandbox)).state is SandboxState.PARTIAL
    engine.lose(sandbox)
    assert (await engine.report(sandbox)).state is SandboxState.ABSENT


async def test_a_planned_build_outcome_is_used_once(engine: FakeEngine) -> None:
    plan = LayerPlan("k", {}, (), runs_foreign_code=False)
    engine.build_outcomes.append(BuildOutcome(1, ("no such package",), 0.1))
    assert not (await engine.build_layer(plan, print)).ok
    assert not await engine.has_layer("k")
    assert (await engine.build_layer(plan, print)).ok
    assert (await engine.build_layer(plan, print)).reused
