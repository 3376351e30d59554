"""The end of all sandboxes, for ``builderd down``: one that fails keeps no other from its end."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection

from builderd.adapters.engines.incus.errors import RETRY_SECONDS
from builderd.domain.errors import BuilderdError, EngineUnavailable
from builderd.domain.ids import SandboxId

#: Sandboxes that are stopped at a time: with hundreds at once, members of Incus stop answering each other.
AT_A_TIME = 16
#: How often each is tried.
ATTEMPTS = 3


async def stop_each(stop: Callable[[SandboxId], Awaitable[object]], sandboxes: Collection[SandboxId]) -> None:
    """Stop all sandboxes, ``AT_A_TIME`` at once, and those that failed again.

    Raises ``EngineUnavailable`` with their number and one cause once some have failed ``ATTEMPTS`` times.
    """
    turns = asyncio.Semaphore(AT_A_TIME)
    failed: dict[SandboxId, BuilderdError] = {}

    async def stop_one(sandbox: SandboxId) -> None:
        async with turns:
            try:
                await stop(sandbox)
            except BuilderdError as error:
                failed[sandbox] = error

    left = sandboxes
    for attempt in range(ATTEMPTS):
        if attempt:
            await asyncio.sleep(RETRY_SECONDS)
        failed.clear()
        await asyncio.gather(*map(stop_one, left))
        if not failed:
            return
        left = tuple(failed)
    raise EngineUnavailable(
        f"{len(failed)} of {len(sandboxes)} sandboxes could not be stopped: run builderd down again. "
        f"The last failure: {next(reversed(failed.values()))}",
        retry_after=RETRY_SECONDS,
    )
