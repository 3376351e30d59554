"""What came of a step."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from builderd.reconciler.core.transitions import Record


async def _nothing() -> None:
    """What is left to do after most steps."""


@dataclass(frozen=True, slots=True)
class Result:
    """``record`` is written in one transaction; ``afterwards`` is tidying that a crash may leave to the next start.

    ``quiet``: nobody who waits for the builder need look at it for this.
    """

    record: Record | None = None
    afterwards: Callable[[], Awaitable[None]] = _nothing
    quiet: bool = False
