"""The pool fills while a CPU is idle, gives each sandbox away once, and gives up what nobody starts."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import cast

import pytest

from builderd.adapters.engines.oci.runtime import pool
from builderd.adapters.engines.oci.runtime.pool import Pool
from builderd.adapters.engines.oci.runtime.records import Record
from builderd.domain.errors import EngineUnavailable
from builderd.domain.ids import SandboxId
from builderd.linux.cpu_time import IdleCpus


class Machine:
    """Makes and drops sandboxes; ``idle`` is the number of idle CPUs."""

    def __init__(self) -> None:
        self.idle = 2.0
        self.made: list[str] = []
        self.dropped: list[str] = []
        self.faults: list[Exception] = []
        self.lasting: list[Exception] = []
        self.removals = asyncio.Event()
        self.removals.set()

    def since_last(self) -> float:
        return self.idle

    async def make(self) -> Record:
        if self.faults:
            raise self.faults.pop()
        self.made.append(f"{len(self.made):x}")
        return Record(self.made[-1], "", "", "crun", len(self.made), "192.0.2.1", 0, "boot")

    async def drop(self, record: Record) -> None:
        await self.removals.wait()
        if self.lasting:
            raise self.lasting.pop()
        self.dropped.append(record.id)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    for name in ("PAUSE", "LEAST_PAUSE", "BUSY_SECONDS", "RETRY_SECONDS"):
        monkeypatch.setattr(pool, name, 0.0)
    return Machine()


@pytest.fixture
async def pool_of_two(machine: Machine) -> AsyncIterator[Pool]:
    pool_ = Pool(2, machine.make, machine.drop, cast("IdleCpus", machine))
    pool_.open()
    yield pool_
    await pool_.close()


async def pass_time() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def test_it_is_filled_to_its_size_and_again_after_a_claim(machine: Machine, pool_of_two: Pool) -> None:
    await pass_time()
    assert machine.made == ["0", "1"]
    assert pool_of_two.reserve() == "0"
    await pass_time()
    assert machine.made == ["0", "1", "2"]


async def test_a_sandbox_is_given_away_once(pool_of_two: Pool) -> None:
    await pass_time()
    reserved = pool_of_two.reserve()
    assert reserved
    taken = pool_of_two.take(reserved)
    assert taken
    assert taken.id == reserved
    assert pool_of_two.take(reserved) is None
    assert pool_of_two.take(SandboxId("1")) is None, "it was not reserved"


async def test_nothing_is_made_on_a_busy_machine_and_nothing_waits_for_it(machine: Machine) -> None:
    machine.idle = 0.1
    pool_ = Pool(2, machine.make, machine.drop, cast("IdleCpus", machine))
    pool_.open()
    await pass_time()
    assert not machine.made
    assert pool_.reserve() is None
    machine.idle = 1.0
    await pass_time()
    assert machine.made == ["0", "1"]
    await pool_.close()


async def test_a_failure_is_retried(machine: Machine, pool_of_two: Pool, caplog: pytest.LogCaptureFixture) -> None:
    machine.faults = [
        ValueError("an empty pid file"),
        OSError("No space left on device"),
        EngineUnavailable("the launcher was killed"),
    ]
    await pass_time()
    assert machine.made == ["0", "1"]
    assert "sandbox not prepared, retrying: error=the launcher was killed" in caplog.text


async def test_an_expired_reservation_is_removed(
    machine: Machine, pool_of_two: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    await pass_time()
    monkeypatch.setattr(pool, "RESERVED_SECONDS", -1.0)
    assert pool_of_two.reserve() == "0"
    await pass_time()
    assert machine.dropped == ["0"]
    assert pool_of_two.take(SandboxId("0")) is None


async def test_reservations_given_up_and_sandboxes_left_at_the_end_are_removed(
    machine: Machine, pool_of_two: Pool
) -> None:
    await pass_time()
    given_up, kept = pool_of_two.reserve(), pool_of_two.reserve()
    assert given_up
    await pool_of_two.discard(given_up)
    await pool_of_two.discard(given_up)
    assert machine.dropped == [given_up]
    await pool_of_two.close()
    assert kept in machine.dropped
    assert sorted(machine.dropped) == sorted(machine.made)


async def test_a_pool_of_none_makes_nothing(machine: Machine) -> None:
    pool_ = Pool(0, machine.make, machine.drop, cast("IdleCpus", machine))
    pool_.open()
    await pass_time()
    assert pool_.reserve() is None
    assert not machine.made
    await pool_.close()


async def test_expired_reservations_are_removed_on_a_machine_that_is_never_idle(
    machine: Machine, pool_of_two: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    await pass_time()
    first, second = pool_of_two.reserve(), pool_of_two.reserve()
    machine.idle = 0.1
    await pass_time()
    assert not machine.dropped
    later = time.monotonic() + pool.RESERVED_SECONDS + 1
    monkeypatch.setattr(time, "monotonic", lambda: later)
    await pass_time()
    assert machine.dropped == [first, second]


async def test_start_waits_for_the_removal_of_a_sandbox_of_its_id(
    machine: Machine, pool_of_two: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    await pass_time()
    machine.removals.clear()
    monkeypatch.setattr(pool, "RESERVED_SECONDS", -1.0)
    late = pool_of_two.reserve()
    assert late
    await pass_time()
    assert pool_of_two.take(late) is None
    forgetting = asyncio.create_task(pool_of_two.forget(late))
    await pass_time()
    assert not forgetting.done()
    machine.removals.set()
    await forgetting
    assert machine.dropped == [late]


async def test_removal_that_failed_is_tried_again_unless_its_id_was_given_away(
    machine: Machine, pool_of_two: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    await pass_time()
    kept, given_away = pool_of_two.reserve(), pool_of_two.reserve()
    assert kept
    assert given_away
    monkeypatch.setattr(pool, "RETRY_SECONDS", 1000.0)
    machine.lasting = [OSError("busy"), OSError("busy")]
    await asyncio.gather(pool_of_two.discard(kept), pool_of_two.discard(given_away))
    await pool_of_two.forget(given_away)
    await pass_time()
    assert machine.dropped == []
    later = time.monotonic() + 2000
    monkeypatch.setattr(time, "monotonic", lambda: later)
    await pool_of_two._drop_unused()
    assert machine.dropped == [kept]
    await pool_of_two.close()
    assert given_away not in machine.dropped
