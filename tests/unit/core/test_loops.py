"""Loops of background jobs, races of two coroutines, and fair queues."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from builderd.core.loops import every, race


class Runner:
    """Runs for so long, and tells how it ended."""

    def __init__(self, seconds: float, error: Exception | None = None) -> None:
        self.seconds = seconds
        self.error = error
        self.ended = ""

    async def run(self) -> str:
        try:
            await asyncio.sleep(self.seconds)
        except asyncio.CancelledError:
            await asyncio.sleep(0)
            self.ended = "cancelled"
            raise
        self.ended = "done"
        if self.error:
            raise self.error
        return "prize"

    async def rival(self) -> None:
        await self.run()


async def test_the_work_that_ends_first_is_answered() -> None:
    work, rival = Runner(0), Runner(60)
    assert await race(work.run(), rival.rival()) == "prize"
    assert rival.ended == "cancelled"


async def test_the_rival_that_ends_first_ends_the_work() -> None:
    work, rival = Runner(60), Runner(0)
    assert await race(work.run(), rival.rival()) is None
    assert work.ended == "cancelled"


@pytest.mark.parametrize(
    ("work", "rival"), [(Runner(0, LookupError("no")), Runner(60)), (Runner(60), Runner(0, LookupError("no")))]
)
async def test_an_error_of_either_is_raised(work: Runner, rival: Runner) -> None:
    with pytest.raises(LookupError):
        await race(work.run(), rival.rival())
    assert {work.ended, rival.ended} == {"done", "cancelled"}


async def test_cancelling_the_race_cancels_both() -> None:
    work, rival = Runner(60), Runner(60)
    racing = asyncio.create_task(race(work.run(), rival.rival()))
    await asyncio.sleep(0.001)
    racing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await racing
    assert (work.ended, rival.ended) == ("cancelled", "cancelled")


class Ended(Exception):
    """Raised by a pause, since a loop has no other end than its cancellation."""


def pauses(slept: list[float], count: int) -> Callable[[float], Awaitable[None]]:
    """Return a ``sleep`` that notes its seconds and ends the loop at the pause number ``count``."""

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == count:
            raise Ended

    return sleep


async def test_a_failing_job_is_logged_and_run_again(caplog: pytest.LogCaptureFixture) -> None:
    runs: list[int] = []
    slept: list[float] = []

    async def job() -> None:
        runs.append(len(runs))
        if len(runs) == 1:
            raise OSError("no route to host")

    with pytest.raises(Ended):
        await every(5.0, job, event="idle check", sleep=pauses(slept, 2))

    assert runs == [0, 1]
    assert slept == [5.0, 5.0]
    assert [record.getMessage() for record in caplog.records] == ["idle check failed, retrying in 5 s"]
    assert "no route to host" in caplog.text


async def test_a_job_may_wait_before_its_first_run() -> None:
    async def job() -> None:
        raise AssertionError("the pause comes first")

    with pytest.raises(Ended):
        await every(0.5, job, event="sweep", wait_first=True, sleep=pauses([], 1))


async def test_cancellation_ends_the_loop_inside_the_job(caplog: pytest.LogCaptureFixture) -> None:
    started = asyncio.Event()

    async def job() -> None:
        started.set()
        await asyncio.Event().wait()

    loop = asyncio.create_task(every(0.0, job, event="idle check"))
    await started.wait()
    loop.cancel()

    with pytest.raises(asyncio.CancelledError):
        await loop
    assert not caplog.records
