"""Signals wake who waits, from any thread, and forget nothing that was told."""

from __future__ import annotations

import asyncio
import threading

from builderd.adapters.signals.local import LocalSignals
from builderd.domain.ids import BuilderId

ONE, OTHER = BuilderId("one"), BuilderId("other")
#: Against hanging only.
PATIENCE = 10


async def test_wishes_are_told_once_and_together() -> None:
    signals = LocalSignals()
    for builder in (ONE, OTHER, ONE):
        signals.wish(builder)
    assert await signals.wishes(PATIENCE) == {ONE, OTHER}
    assert await signals.wishes(0) == frozenset()


async def test_wishes_that_were_told_before_are_not_waited_for() -> None:
    signals = LocalSignals()
    signals.wish(ONE)
    assert await signals.wishes(0) == {ONE}


async def test_who_waits_for_wishes_is_woken() -> None:
    signals = LocalSignals()
    waiting = asyncio.create_task(signals.wishes(PATIENCE))
    await asyncio.sleep(0.001)
    signals.wish(ONE)
    assert await waiting == {ONE}


async def test_without_a_wish_the_time_runs_out() -> None:
    assert await LocalSignals().wishes(0.001) == frozenset()


async def test_a_wish_is_not_lost_when_who_waits_for_it_is_cancelled() -> None:
    signals = LocalSignals()
    waiting = asyncio.create_task(signals.wishes(PATIENCE))
    await asyncio.sleep(0.001)
    signals.wish(ONE)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    assert await signals.wishes(0) == ({ONE} if waiting.cancelled() else frozenset())


async def test_a_change_wakes_everybody_who_waits_for_that_builder_and_nobody_else() -> None:
    signals = LocalSignals()
    waiting = [asyncio.create_task(signals.wait(ONE, 0, PATIENCE)) for _ in range(3)]
    other = asyncio.create_task(signals.wait(OTHER, 0, PATIENCE))
    await asyncio.sleep(0.001)
    signals.change(ONE)
    await asyncio.gather(*waiting)
    assert signals.count(ONE) == 1
    assert not other.done()
    other.cancel()


async def test_a_change_between_looking_and_waiting_is_not_overlooked() -> None:
    signals = LocalSignals()
    seen = signals.count(ONE)
    signals.change(ONE)
    await signals.wait(ONE, seen, PATIENCE)


async def test_without_a_change_the_wait_runs_out_and_leaves_nothing() -> None:
    signals = LocalSignals()
    await signals.wait(ONE, 0, 0.001)
    cancelled = asyncio.create_task(signals.wait(ONE, 0, PATIENCE))
    await asyncio.sleep(0.001)
    cancelled.cancel()
    await asyncio.gather(cancelled, return_exceptions=True)
    assert not signals._waiters


async def test_other_threads_may_tell() -> None:
    signals = LocalSignals()
    waiting = asyncio.create_task(signals.wait(ONE, 0, PATIENCE))
    await asyncio.sleep(0.001)

    def tell() -> None:
        signals.wish(ONE)
        signals.change(ONE)

    thread = threading.Thread(target=tell)
    thread.start()
    await waiting
    assert await signals.wishes(PATIENCE) == {ONE}
    thread.join()


def test_telling_after_the_loop_is_closed_is_no_error() -> None:
    async def make() -> LocalSignals:
        return LocalSignals()

    signals = asyncio.run(make())
    thread = threading.Thread(target=signals.wish, args=(ONE,))
    thread.start()
    thread.join()
