"""The end of all sandboxes, for ``builderd down``: one that fails keeps no other from its end."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection

from builderd.adapters.engines.incus.errors import RETRY_SECONDS
from builderd.domain.errors import EngineUnavailable
from builderd.domain.ids import SandboxId
from builderd.domain.members import MemberAway

#: Sandboxes that are stopped at a time: with hundreds at once, members of Incus stop answering each other.
AT_A_TIME = 16
#: How often each is tried.
ATTEMPTS = 3


async def stop_each(stop: Callable[[SandboxId], Awaitable[object]], sandboxes: Collection[SandboxId]) -> None:
    """Stop all sandboxes, ``AT_A_TIME`` at once, and those that failed again, but for those of members that are away.

    Raises ``EngineUnavailable`` with their number and one cause once some have failed ``ATTEMPTS`` times.
    """
    turns = asyncio.Semaphore(AT_A_TIME)
    failed: dict[SandboxId, Exception] = {}
    away: dict[SandboxId, MemberAway] = {}

    async def stop_one(sandbox: SandboxId) -> None:
        async with turns:
            try:
                await stop(sandbox)
            except MemberAway as error:
                away[sandbox] = error
            except Exception as error:  # whatever it is, the others end
                failed[sandbox] = error

    left = sandboxes
    for attempt in range(ATTEMPTS):
        if attempt:
            await asyncio.sleep(RETRY_SECONDS)
        failed.clear()
        await asyncio.gather(*map(stop_one, left))
        left = tuple(failed)
        if not left:
            break
    if failed or away:
        count, last = len(failed) + len(away), next(reversed([*away.values(), *failed.values()]))
        there = f", {len(away)} of them on members that are away" if away else ""
        raise EngineUnavailable(
            f"{count} of {len(sandboxes)} sandboxes could not be stopped{there}: run builderd down again. "
            f"The last failure: {last!r}",
            retry_after=RETRY_SECONDS,
        )
