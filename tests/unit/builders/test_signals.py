"""Signals wake waiters, from any thread, and none is lost."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sized

from builderd.builders.signals import Signals, outcome_of
from builderd.core.ids import BuilderId

ONE, OTHER = BuilderId("one"), BuilderId("other")
#: Seconds; only against hanging.
TIMEOUT = 10


async def test_desired_changes_are_returned_once_and_together() -> None:
    signals = Signals()
    for builder in (ONE, OTHER, ONE):
        signals.desired_changed(builder)
    assert await signals.desired_changes(TIMEOUT) == {ONE, OTHER}
    assert await signals.desired_changes(0) == frozenset()


async def test_earlier_desired_changes_return_at_once() -> None:
    signals = Signals()
    signals.desired_changed(ONE)
    assert await signals.desired_changes(0) == {ONE}


async def test_a_waiter_for_desired_changes_is_woken() -> None:
    signals = Signals()
    waiting = asyncio.create_task(signals.desired_changes(TIMEOUT))
    await asyncio.sleep(0.001)
    signals.desired_changed(ONE)
    assert await waiting == {ONE}


async def test_desired_changes_is_empty_at_the_timeout() -> None:
    assert await Signals().desired_changes(0.001) == frozenset()


async def test_a_desired_change_survives_a_cancelled_waiter() -> None:
    signals = Signals()
    waiting = asyncio.create_task(signals.desired_changes(TIMEOUT))
    await asyncio.sleep(0.001)
    signals.desired_changed(ONE)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    assert await signals.desired_changes(0) == ({ONE} if waiting.cancelled() else frozenset())


async def test_a_change_wakes_only_the_waiters_of_that_builder() -> None:
    signals = Signals()
    waiting = [asyncio.create_task(signals.wait(ONE, 0, TIMEOUT)) for _ in range(3)]
    other = asyncio.create_task(signals.wait(OTHER, 0, TIMEOUT))
    await asyncio.sleep(0.001)
    signals.change(ONE)
    await asyncio.gather(*waiting)
    assert signals.count(ONE) == 1
    assert not other.done()
    other.cancel()


async def test_a_change_between_count_and_wait_returns_at_once() -> None:
    signals = Signals()
    seen = signals.count(ONE)
    signals.change(ONE)
    await signals.wait(ONE, seen, TIMEOUT)


async def test_a_wait_that_times_out_or_is_cancelled_leaves_no_waiter() -> None:
    signals = Signals()
    await signals.wait(ONE, 0, 0.001)
    cancelled = asyncio.create_task(signals.wait(ONE, 0, TIMEOUT))
    await asyncio.sleep(0.001)
    cancelled.cancel()
    await asyncio.gather(cancelled, return_exceptions=True)
    assert not signals._waiters


async def test_signals_may_be_sent_from_other_threads() -> None:
    signals = Signals()
    waiting = asyncio.create_task(signals.wait(ONE, 0, TIMEOUT))
    await asyncio.sleep(0.001)

    def send() -> None:
        signals.desired_changed(ONE)
        signals.change(ONE)

    thread = threading.Thread(target=send)
    thread.start()
    await waiting
    assert await signals.desired_changes(TIMEOUT) == {ONE}
    thread.join()


def test_a_signal_after_the_loop_is_closed_is_ignored() -> None:
    async def make() -> Signals:
        return Signals()

    signals = asyncio.run(make())
    thread = threading.Thread(target=signals.desired_changed, args=(ONE,))
    thread.start()
    thread.join()


async def test_progress_wakes_who_follows_and_not_who_waits_for_the_outcome() -> None:
    signals = Signals()
    step, outcome = signals.count(ONE), signals.count(outcome_of(ONE))
    signals.progress(ONE)
    await signals.wait(ONE, step, TIMEOUT)
    assert signals.count(outcome_of(ONE)) == outcome
    waiting = asyncio.create_task(signals.wait(outcome_of(ONE), outcome, TIMEOUT))
    await asyncio.sleep(0.001)
    signals.change(ONE)
    await waiting
    assert signals.count(outcome_of(ONE)) == outcome + 1


async def test_nothing_is_kept_of_builders_that_are_gone() -> None:
    signals = Signals()

    async def follow(builder: BuilderId) -> None:
        waiting = asyncio.create_task(signals.wait(builder, signals.count(builder), TIMEOUT))
        await asyncio.sleep(0)
        signals.desired_changed(builder)
        signals.change(builder)
        await waiting
        await signals.desired_changes(0)

    def kept() -> int:
        return sum(len(one) for one in vars(signals).values() if isinstance(one, Sized))

    before = kept()
    for number in range(100):
        await follow(BuilderId(f"builder-{number}"))
    assert kept() == before
