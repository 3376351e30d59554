"""The system clock under steps of the wall clock and restarts: it measures elapsed time, and ends up right."""

from __future__ import annotations

import asyncio
import errno
import json
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.application import PATIENCE

from builderd.linux import atomic_files
from builderd.linux import clock as system
from builderd.linux.clock import FOLLOW_AFTER, STEP_TOLERANCE, ClockReading, SystemClock

SECOND = timedelta(seconds=1)
MINUTE = timedelta(minutes=1)
MILLISECOND = timedelta(milliseconds=1)
HOUR, DAY = timedelta(hours=1), timedelta(days=1)
START = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass
class Machine:
    """Both clocks of a machine, in nanoseconds; ``lived``: the time that really passed."""

    wall: int = int(START.timestamp()) * 10**9
    since_boot: int = 5 * 10**9
    boot: str = "first"
    lived: int = 0
    boots: int = field(default=1)

    def __call__(self) -> ClockReading:
        return ClockReading(self.boot, self.since_boot, self.wall)

    def live(self, seconds: float) -> None:
        self.wall += int(seconds * 1e9)
        self.since_boot += int(seconds * 1e9)
        self.lived += int(seconds * 1e9)

    def set(self, seconds: float) -> None:
        """Set the wall clock forward or back."""
        self.wall += int(seconds * 1e9)

    def set_for_good(self, seconds: float, clock: SystemClock) -> None:
        """Set the wall clock forward, and let pass what it takes until the clock follows."""
        self.set(seconds)
        clock.now()
        self.live(FOLLOW_AFTER / 1e9)
        clock.now()

    def restart(self, seconds: float) -> None:
        self.live(seconds)
        self.boots += 1
        self.boot, self.since_boot = f"boot {self.boots}", 10**9


@pytest.fixture
def machine() -> Machine:
    return Machine()


def test_the_clock_shows_the_wall_time() -> None:
    assert abs(SystemClock().now() - datetime.now(UTC)) < SECOND


def test_a_step_forward_is_followed_after_an_hour(machine: Machine, tmp_path: Path) -> None:
    memory = tmp_path / "clock.json"
    clock = SystemClock(memory, machine)
    machine.live(10)
    machine.set(7200)
    machine.live(5)
    assert clock.now() == START + 15 * SECOND
    machine.live(3599)
    clock = SystemClock(memory, machine)
    assert clock.now() == START + 3614 * SECOND, "a restart begins no new hour"
    machine.live(3600)
    assert clock.now() == START + (7214 + 7200) * SECOND


def test_a_step_of_less_than_a_second_is_followed_at_once(machine: Machine) -> None:
    clock = SystemClock(read=machine)
    machine.set(0.9)
    assert clock.now() == START + 0.9 * SECOND


def test_a_wrong_clock_that_is_put_right_changes_nothing(machine: Machine, tmp_path: Path) -> None:
    memory = tmp_path / "clock.json"
    clock = SystemClock(memory, machine)
    machine.live(10)
    machine.set(365 * DAY.total_seconds())
    assert clock.now() == clock.deletable() == START + 10 * SECOND
    machine.live(18)
    clock = SystemClock(memory, machine)
    machine.live(18)
    assert clock.now() == START + 46 * SECOND
    machine.set(-365 * DAY.total_seconds())
    for passed in (46, 10_046, 20_046):
        assert (clock.now(), clock.fault()) == (START + passed * SECOND, "")
        machine.live(10_000)


@pytest.mark.parametrize("back", [3600, 365 * 86_400])
def test_no_clock_begins_ahead_of_the_wall_clock(machine: Machine, tmp_path: Path, back: int) -> None:
    memory = tmp_path / "clock.json"
    clock = SystemClock(memory, machine)
    machine.live(100)
    machine.set(-back)
    assert clock.now() == START + 100 * SECOND
    assert SystemClock(memory, machine).now() == START + (100 - back) * SECOND
    machine.live(10)
    clock = SystemClock(memory, machine)
    clock.save()
    machine.restart(10)
    assert SystemClock(memory, machine).now() == START + (120 - back) * SECOND


def test_a_restart_leaves_out_no_microsecond(machine: Machine, tmp_path: Path) -> None:
    """The two clocks are read one after the other, so readings differ a little."""
    clock = SystemClock(tmp_path / "clock", machine)
    machine.live(10)
    machine.since_boot += 1_500

    assert SystemClock(tmp_path / "clock", machine).now() == clock.now()


def test_a_clock_that_began_too_early_follows_at_once(machine: Machine, tmp_path: Path) -> None:
    """A machine without a battery starts with an old time, which NTP sets forward soon after."""
    memory = tmp_path / "clock.json"
    SystemClock(memory, machine)
    machine.live(100)
    SystemClock(memory, machine)
    machine.set(-365 * DAY.total_seconds())
    machine.restart(50)
    clock = SystemClock(memory, machine)
    assert "rows may lie in the future" in clock.fault()
    machine.set(365 * DAY.total_seconds())
    assert (clock.now(), clock.fault()) == (START + 150 * SECOND, "")


def test_each_change_of_the_wall_clock_is_reported_with_its_remedy(machine: Machine, tmp_path: Path) -> None:
    memory = tmp_path / "clock.json"
    clock = SystemClock(memory, machine)
    assert clock.fault() == ""
    machine.set(7200)
    assert "set forward by 2:00:00: the service follows it at 01:00 UTC" in clock.fault()
    machine.set(-2 * 7200)
    assert "set back: the service is 2:00:00 ahead of it until it is restarted" in clock.fault()
    shown = SystemClock(memory, machine, begins=False)
    assert (shown.fault(), shown.now()) == (clock.fault(), clock.now())
    clock = SystemClock(memory, machine)
    assert "the service had times until 2026-01-01 00:00 UTC before" in clock.fault()
    assert "`builderd clock repair`" in clock.fault()
    clock.forget_latest()
    assert SystemClock(memory, machine).fault() == ""


def test_at_translates_a_file_time_to_the_clocks(machine: Machine, tmp_path: Path) -> None:
    clock = SystemClock(tmp_path / "clock.json", machine)
    machine.set(-3600)
    machine.live(60)
    written, shown = machine.wall / 1e9, clock.now()
    assert clock.at(written) == pytest.approx(shown.timestamp(), abs=1e-3)
    assert clock.at(written + 100_000) == clock.seconds(), "never in the future"
    machine.restart(7200)
    clock = SystemClock(tmp_path / "clock.json", machine)
    assert clock.at(written) == pytest.approx(written)


def test_a_damaged_state_file_is_ignored(machine: Machine, tmp_path: Path) -> None:
    memory = tmp_path / "clock.json"
    for text in ("", "{", "[]", '{"boot": 1}'):
        memory.write_text(text)
        assert SystemClock(memory, machine).now() == START


async def test_a_full_disk_is_logged_once_and_the_state_is_saved_when_there_is_space(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(system, "SAVE_INTERVAL", 0.001)
    memory = tmp_path / "clock.json"
    clock = SystemClock(memory, machine)
    write, failures, tried, is_saved = atomic_files.replace, 5, 0, False

    def fail(path: Path, content: bytes, **options: Any) -> None:
        nonlocal tried, is_saved
        tried += 1
        if tried <= failures:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, content, **options)
        is_saved = True

    monkeypatch.setattr(atomic_files, "replace", fail)
    machine.live(100)
    clock.now()
    keeping = asyncio.create_task(clock.save_periodically())
    async with asyncio.timeout(PATIENCE):
        while not is_saved:
            await asyncio.sleep(0.001)
    keeping.cancel()
    assert json.loads(memory.read_text())["latest"] == clock._state.latest
    assert caplog.text.count("clock state not saved") == 1


events = st.lists(
    st.one_of(
        st.tuples(st.just("live"), st.floats(0, 10_000)),
        st.tuples(
            st.just("set"), st.floats(-100_000, 100_000).filter(lambda s: s == 0 or abs(s) * 1e9 > STEP_TOLERANCE)
        ),
        st.tuples(st.just("restart service"), st.just(0.0)),
    ),
    max_size=30,
)


@given(events)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_clock_never_goes_back_and_leaves_elapsed_time_only_for_the_wall_clocks(
    tmp_path: Path, happened: list[tuple[str, float]]
) -> None:
    machine, memory = Machine(), tmp_path / "clock.json"
    memory.unlink(missing_ok=True)
    clock = SystemClock(memory, machine)
    for what, seconds in happened:
        before, lived = clock.now(), machine.lived
        if what == "restart service":
            clock = SystemClock(memory, machine)
            assert clock.now() <= datetime.fromtimestamp(machine.wall / 1e9, UTC) + MILLISECOND
            continue
        getattr(machine, what)(seconds)
        now, elapsed = clock.now(), timedelta(microseconds=(machine.lived - lived) / 1000)
        assert now >= before
        if abs(now - before - elapsed) > MILLISECOND:
            assert abs(now.timestamp() - machine.wall / 1e9) < 0.001, "it follows to the wall clock's time"


def test_nothing_may_be_deleted_by_a_step_forward_for_a_day(machine: Machine, tmp_path: Path) -> None:
    memory = tmp_path / "clock.json"
    clock = SystemClock(memory, machine)
    machine.set_for_good(400 * DAY.total_seconds(), clock)
    assert clock.now() == START + 400 * DAY + HOUR
    assert clock.deletable() == START + HOUR
    machine.live(60)
    assert clock.deletable() == START + HOUR + MINUTE
    assert SystemClock(memory, machine).deletable() == START + HOUR + MINUTE
    machine.live(DAY.total_seconds() - 61)
    assert clock.deletable() == START + HOUR + DAY - SECOND
    machine.live(1)
    assert clock.deletable() == clock.now() == START + 401 * DAY + HOUR


def test_a_step_forward_that_was_set_back_deletes_nothing_ever(machine: Machine, tmp_path: Path) -> None:
    clock = SystemClock(tmp_path / "clock.json", machine)
    machine.set_for_good(400 * DAY.total_seconds(), clock)
    machine.set(-400 * DAY.total_seconds())
    assert clock.deletable() < START + HOUR
    machine.live(2 * DAY.total_seconds())
    assert clock.deletable() == START + 2 * DAY + HOUR
    assert clock.now() == START + 402 * DAY + HOUR
    machine.restart(60)
    again = SystemClock(tmp_path / "clock.json", machine)
    assert again.now() == START + 2 * DAY + HOUR + MINUTE
    assert again.deletable() <= again.now()


def test_a_machine_that_was_off_for_days_deletes_nothing_for_a_day(machine: Machine, tmp_path: Path) -> None:
    """The clock cannot distinguish a long night from a battery that lost the time."""
    memory = tmp_path / "clock.json"
    SystemClock(memory, machine)
    machine.restart(10 * DAY.total_seconds())
    clock = SystemClock(memory, machine)
    assert clock.deletable() < START + HOUR
    machine.live(DAY.total_seconds() + 1)
    assert clock.deletable() == clock.now()


@pytest.mark.parametrize("reboots", [False, True])
def test_the_state_of_a_later_version_is_read_and_kept(machine: Machine, tmp_path: Path, *, reboots: bool) -> None:
    memory = tmp_path / "clock.json"
    SystemClock(memory, machine)
    memory.write_text(json.dumps({**json.loads(memory.read_text()), "source": "ptp"}))
    if reboots:
        machine.restart(1)
    machine.set(100)
    # A clock without a state would begin with the wall clock's time in the same boot, too.
    assert SystemClock(memory, machine).now() == START + (101 * SECOND if reboots else 0 * SECOND)
    assert json.loads(memory.read_text())["source"] == "ptp"
