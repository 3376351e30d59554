"""The first of two concurrent tasks to end decides, and the other is cancelled."""

from __future__ import annotations

import asyncio

import pytest

from builderd.reconciler.core.loops import race


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
