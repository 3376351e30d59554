"""Builds that ended and cost nothing, kept beside the database until it has taken their ends.

Their rows in ``open_builds`` say only that they ran; the next service would charge them.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol


class UnpaidBuilds(Protocol):
    async def add(self, build: str) -> None:
        """Keep the id of a build over a kill of the service. Idempotent. Raises ``OSError``."""

    async def all(self) -> Collection[str]:
        """Return the ids that are kept. Raises ``OSError``."""

    async def remove(self, build: str) -> None:
        """Remove the id. Idempotent. Raises ``OSError``."""
