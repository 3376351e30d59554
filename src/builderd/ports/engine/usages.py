"""Usage of many sandboxes, for engines that read each by itself."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping

from builderd.domain.ids import SandboxId
from builderd.domain.sandboxes import SandboxUsage


async def read_each(
    usage: Callable[[SandboxId], Awaitable[SandboxUsage | None]], sandboxes: Collection[SandboxId]
) -> Mapping[SandboxId, SandboxUsage | Exception]:
    """Return the usage of those that run, or the error of reading it, one after the other."""
    found: dict[SandboxId, SandboxUsage | Exception] = {}
    for sandbox in sandboxes:
        try:
            used: SandboxUsage | Exception | None = await usage(sandbox)
        except Exception as error:
            used = error
        if used is not None:
            found[sandbox] = used
    return found
