"""Time limit of a start, by the clock and by CPU time."""

from __future__ import annotations

import re

import pytest
from tests.application import ENTRYPOINT, World

from builderd.adapters.fakes.engine import FakeEngine
from builderd.adapters.fakes.sandboxes import Behaviour
from builderd.domain.errors import StartFailed
from builderd.domain.ids import SandboxId
from builderd.domain.sandboxes import SandboxUsage
from builderd.services.start_time import INTERVAL, MOST, WINDOW, StartTime

TIMEOUT = 60.0


class Machine(FakeEngine):
    """An app that has ``share`` of a CPU from its start to ``busy_until``, but none in the rest of each ``period``."""

    def __init__(self, share: float, busy_until: float = 1e9, period: float = 1, working: float = 1) -> None:
        super().__init__()
        self.share, self.busy_until, self.seconds, self.looks = share, busy_until, 0.0, 0
        self.period, self.working = period, working

    async def usage(self, sandbox: SandboxId) -> SandboxUsage | None:
        self.looks += 1
        periods, rest = divmod(min(self.seconds, self.busy_until), self.period)
        return SandboxUsage(self.share * (periods * self.working + min(rest, self.working)), 1, 1, 1, 1, 1)


async def over_after(machine: Machine, timeout: float = TIMEOUT) -> float:
    start_time = StartTime(machine, SandboxId("a" * 16), timeout, longest=TIMEOUT)
    while not await start_time.is_over(machine.seconds):
        machine.seconds += 0.5
    return machine.seconds


@pytest.mark.parametrize(
    ("share", "busy_until", "seconds"),
    [
        pytest.param(1.0, 1e9, TIMEOUT, id="busy on an idle machine: it had its CPU time"),
        pytest.param(0.0, 1e9, TIMEOUT, id="it waits for something else"),
        pytest.param(0.9, 20, TIMEOUT, id="it was busy, and waits now"),
        pytest.param(0.5, 1e9, 2 * TIMEOUT, id="half a CPU: twice the time"),
        pytest.param(0.05, 1e9, MOST * TIMEOUT, id="hardly any CPU: at most so long"),
        pytest.param(0.25, 100, 100, id="it waits from then on"),
    ],
)
async def test_a_busy_app_has_its_timeout_in_cpu_time(share: float, busy_until: float, seconds: float) -> None:
    machine = Machine(share, busy_until)
    over = await over_after(machine)
    assert seconds <= over <= seconds + 2 * INTERVAL + (WINDOW if seconds > TIMEOUT else 0)
    looks = (over - TIMEOUT + 2 * WINDOW) / INTERVAL
    assert machine.looks <= looks + 3, "the usage of a disk is not asked for at each look"


async def test_app_that_a_loaded_machine_stalls_for_seconds_has_its_time() -> None:
    """Gradio at load 34 was failed after 69 s: it read its modules, and had no CPU for two seconds."""
    machine = Machine(0.2, period=9, working=2)
    assert await over_after(machine) == MOST * TIMEOUT


@pytest.mark.parametrize("timeout", [5.0, 12.0])
async def test_shorter_time_of_a_take_over_has_the_window_and_the_end_of_a_start(timeout: float) -> None:
    """In a take-over Panel was failed after 5 s, for 1.7 s without CPU."""
    waits, works = await over_after(Machine(0.0), timeout), await over_after(Machine(1.0), timeout)
    assert max(timeout, WINDOW) <= waits <= max(timeout, WINDOW) + 2 * INTERVAL
    assert timeout <= works <= timeout + 2 * INTERVAL
    assert timeout / 0.2 <= await over_after(Machine(0.2), timeout) <= timeout / 0.2 + 2 * INTERVAL
    assert await over_after(Machine(0.2, period=9, working=2), timeout) >= timeout / 0.2 * 4
    assert await over_after(Machine(0.03), 12.0) == MOST * TIMEOUT


@pytest.mark.parametrize(("share", "over"), [(0.5, False), (0.0, True)])
async def test_first_look_that_comes_late_decides_nothing(share: float, over: bool) -> None:
    machine = Machine(share)
    start_time = StartTime(machine, SandboxId("a" * 16), TIMEOUT)
    machine.seconds = TIMEOUT + 1
    assert not await start_time.is_over(machine.seconds)
    for _ in range(4):
        machine.seconds += INTERVAL
        assert not await start_time.is_over(machine.seconds)
    machine.seconds += INTERVAL
    assert await start_time.is_over(machine.seconds) == over


async def test_an_app_that_waits_is_failed_after_its_timeout(world: World) -> None:
    """The reconciler confirms it by a second wait, of one window."""
    world.engine.behave(ENTRYPOINT, Behaviour(listens_at=None))
    async with world.reconciling():
        with pytest.raises(StartFailed, match=r"did not listen on .* within [67]\d seconds") as failed:
            await world.create()
    said = re.search(r"within (\d+) seconds", str(failed.value))
    assert said is not None
    assert TIMEOUT <= int(said[1]) <= TIMEOUT + WINDOW + 2 * INTERVAL
