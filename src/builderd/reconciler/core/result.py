"""Result of a step."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from builderd.reconciler.core.transitions import Record


async def nothing() -> None:
    """Do nothing: the default of ``Result.afterwards``."""


@dataclass(frozen=True, slots=True)
class Result:
    """Result of a step: ``record`` is written in one transaction, then ``afterwards`` tidies up.

    A crash may leave ``afterwards`` to the next start. ``quiet``: calls that wait for the builder are not woken.
    """

    record: Record | None = None
    afterwards: Callable[[], Awaitable[None]] = nothing
    quiet: bool = False
