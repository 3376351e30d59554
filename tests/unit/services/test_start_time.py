"""Time limit of a start, by the clock and by CPU time."""

from __future__ import annotations

import re

import pytest
from tests.application import ENTRYPOINT, World
from tests.fakes.clock import FakeClock
from tests.fakes.engine import FakeEngine
from tests.fakes.sandboxes import Behaviour

from builderd.domain.errors import StartFailed
from builderd.domain.ids import SandboxId
from builderd.domain.sandboxes import SandboxEffort
from builderd.services.start_time import GAP, INTERVAL, MOST, WINDOW, StartTime, TimeLimit

TIMEOUT = 60.0
#: Between two questions of those who wait.
STEP = 0.1
AT_MOST = pytest.approx(MOST * TIMEOUT, abs=2 * STEP)


class Machine(FakeEngine):
    """An app that has ``share`` of a CPU from its start to ``busy_until``, but none in the rest of each ``period``.

    It is found working in ``found`` of the looks, and reads ``refaults`` pages a second again (None: below its limit).
    """

    refaults: float | None = None

    def __init__(
        self, share: float, busy_until: float = 1e9, period: float = 1, working: float = 1, *, found: float = 0.0
    ) -> None:
        super().__init__()
        self.time, self.looks = FakeClock(), 0
        self.share, self.busy_until, self.period, self.working, self.found = share, busy_until, period, working, found

    @property
    def seconds(self) -> float:
        return self.time.passed()

    async def effort(self, sandbox: SandboxId) -> SandboxEffort | None:
        self.looks += 1
        periods, rest = divmod(min(self.seconds, self.busy_until), self.period)
        cpu = self.share * (periods * self.working + min(rest, self.working))
        is_working = int(self.looks * self.found) > int((self.looks - 1) * self.found)
        return SandboxEffort(cpu, is_working, None if self.refaults is None else int(self.refaults * self.seconds))

    def start_time(self, limit: TimeLimit) -> StartTime:
        return StartTime(self, self.time, SandboxId("a" * 16), limit)


async def over_after(machine: Machine, timeout: float = TIMEOUT) -> float:
    start_time = machine.start_time(TimeLimit.of_start(timeout, TIMEOUT))
    while not await start_time.is_over():
        machine.time.move(STEP)
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
    assert machine.looks <= looks + 3, "it is not looked at before the end is near"


async def test_app_that_a_loaded_machine_stalls_for_seconds_has_its_time() -> None:
    """Gradio at load 34 was failed after 69 s: it read its modules, and had no CPU for two seconds."""
    machine = Machine(0.2, period=9, working=2)
    assert await over_after(machine) == AT_MOST


@pytest.mark.parametrize("timeout", [5.0, 12.0])
async def test_shorter_time_of_a_take_over_has_the_window_and_the_end_of_a_start(timeout: float) -> None:
    """In a take-over Panel was failed after 5 s, for 1.7 s without CPU."""
    waits, works = await over_after(Machine(0.0), timeout), await over_after(Machine(1.0), timeout)
    assert max(timeout, WINDOW) <= waits <= max(timeout, WINDOW) + 2 * INTERVAL
    assert timeout <= works <= timeout + 2 * INTERVAL
    assert timeout / 0.2 <= await over_after(Machine(0.2), timeout) <= timeout / 0.2 + 2 * INTERVAL
    assert await over_after(Machine(0.2, period=9, working=2), timeout) >= timeout / 0.2 * 4
    assert await over_after(Machine(0.03), 12.0) == AT_MOST


@pytest.mark.parametrize(("found", "seconds"), [(0.6, MOST * TIMEOUT), (1.0, MOST * TIMEOUT), (0.4, TIMEOUT)])
async def test_app_that_works_without_getting_any_cpu_has_its_time(found: float, seconds: float) -> None:
    """An app reads its modules from a busy disk, or waits for a CPU that others have. A timer is no work."""
    assert seconds <= await over_after(Machine(0.0, found=found)) <= seconds + 2 * INTERVAL


@pytest.mark.parametrize(
    ("share", "found", "starved"),
    [
        pytest.param(0.02, 0.9, 6.0, id="it worked and got little"),
        pytest.param(0.03, 0.3, None, id="it mostly waited, with a timer"),
        pytest.param(0.0, 0.0, None, id="it waited"),
        pytest.param(1.0, 1.0, None, id="it had its CPU time"),
    ],
)
async def test_app_that_worked_to_the_end_for_too_little_cpu_was_starved(
    share: float, found: float, starved: float | None
) -> None:
    machine = Machine(share, found=found)
    start_time = machine.start_time(TimeLimit.of_start(TIMEOUT))
    while not await start_time.is_over():
        assert start_time.starved is None
        machine.time.move(STEP)
    assert start_time.starved == (starved and pytest.approx(starved, abs=0.1))


@pytest.mark.parametrize(
    ("refaults", "lacks_memory"),
    [
        pytest.param(None, False, id="its memory is below its limit"),
        pytest.param(5, False, id="now and then a page is read again"),
        pytest.param(200, True, id="its pages are taken from it all the time"),
    ],
)
async def test_app_that_reads_its_own_pages_again_and_again_lacks_memory_and_was_not_starved(
    refaults: float | None, lacks_memory: bool
) -> None:
    """Threads of an app at its own limit wait for the disk, for hardly any CPU time: the machine is not too busy."""
    machine = Machine(0.02, found=0.9)
    machine.refaults = refaults
    start_time = machine.start_time(TimeLimit.of_start(TIMEOUT))
    while not await start_time.is_over():
        machine.time.move(STEP)
    assert start_time.lacks_memory == lacks_memory
    assert (start_time.starved is None) == lacks_memory


async def test_app_that_computes_at_the_end_was_not_starved() -> None:
    """Days after its start it has had its time, and is looked at for a window: a loop there is its own."""
    machine = Machine(1.0, found=1.0)
    machine.share = 0.0001
    limit = TimeLimit.of_start(TIMEOUT)
    start_time = StartTime(machine, machine.time, SandboxId("a" * 16), limit, before=3 * 86_400)
    assert not await start_time.is_over()
    machine.share = 1.0
    while not await start_time.is_over():
        machine.time.move(STEP)
    assert start_time.starved is None


@pytest.mark.parametrize(("share", "over"), [(0.5, False), (0.0, True)])
async def test_first_look_that_comes_late_decides_nothing(share: float, over: bool) -> None:
    machine = Machine(share)
    start_time = StartTime(machine, machine.time, SandboxId("a" * 16), TimeLimit.of_start(TIMEOUT), TIMEOUT + 1)
    while machine.seconds < WINDOW - STEP:
        assert not await start_time.is_over()
        machine.time.move(STEP)
    machine.time.move(2 * INTERVAL)
    assert await start_time.is_over() == over


async def test_time_in_which_the_service_itself_did_not_run_is_not_the_apps() -> None:
    """A machine that is paused for ten minutes, or that gives the service no CPU, gives the app none either."""
    machine = Machine(0.0)
    start_time = machine.start_time(TimeLimit.of_start(TIMEOUT))
    await start_time.is_over()
    for pause in (600.0, 45.0):
        machine.time.move(pause)
        assert not await start_time.is_over()
    assert start_time.left == MOST * TIMEOUT - 2 * GAP
    while not await start_time.is_over():
        machine.time.move(STEP)
    assert 645 + TIMEOUT - 2 * GAP <= machine.seconds <= 645 + TIMEOUT + 2 * INTERVAL
    assert start_time.seconds == machine.seconds, "the message has what passed"


async def test_service_that_is_late_all_the_time_fails_an_app_for_its_own_looks_only() -> None:
    machine = Machine(0.0)
    start_time = machine.start_time(TimeLimit.of_start(TIMEOUT))
    while not await start_time.is_over():
        machine.time.move(3 * GAP)
    assert 3 * TIMEOUT <= machine.seconds <= 3 * (TIMEOUT + WINDOW)


@pytest.mark.parametrize(
    ("share", "found", "seconds"),
    [
        pytest.param(0.0, 0.0, 5, id="it waits"),
        pytest.param(0.3, 0.3, 5, id="it answers, which takes CPU time, and waits"),
        pytest.param(1.0, 1.0, 5, id="it worked all the time on an idle machine"),
        pytest.param(0.2, 0.9, 25, id="it works on a loaded machine: until it had as much"),
        pytest.param(0.0, 0.9, 40, id="it gets nothing: to the end"),
    ],
)
async def test_short_grace_is_extended_only_for_want_of_the_machine(share: float, found: float, seconds: float) -> None:
    machine = Machine(share, found=found)
    machine.time.move(30)  # its CPU time before is not part of it
    grace = machine.start_time(TimeLimit.of_grace(5, most=40))
    while not await grace.is_over():
        machine.time.move(STEP)
    assert seconds <= machine.seconds - 30 <= seconds + 2 * INTERVAL + STEP


@pytest.mark.parametrize(("share", "found", "seconds"), [(0.0, 0.0, 1), (1.0, 1.0, 1), (0.1, 1.0, 10), (0.0, 1.0, 20)])
async def test_worker_that_works_on_a_loaded_machine_is_up_after_a_second_of_cpu(
    share: float, found: float, seconds: float
) -> None:
    machine = Machine(share, found=found)
    life = machine.start_time(TimeLimit.of_life(1))
    while not await life.is_over():
        machine.time.move(STEP)
    assert seconds <= machine.seconds <= seconds + 0.5


async def test_an_app_that_waits_is_failed_after_its_timeout(world: World) -> None:
    """The reconciler confirms it by a second wait, of one window."""
    world.engine.behave(ENTRYPOINT, Behaviour(listens_at=None))
    async with world.reconciling():
        with pytest.raises(StartFailed, match=r"did not listen on .* within [67]\d seconds") as failed:
            await world.create()
    said = re.search(r"within (\d+) seconds", str(failed.value))
    assert said is not None
    assert TIMEOUT <= int(said[1]) <= TIMEOUT + WINDOW + 2 * INTERVAL
