"""Logs: what the apps print, kept after their sandboxes are gone."""

from __future__ import annotations

from datetime import datetime
from typing import Protocol

from builderd.domain.ids import BuilderId, SandboxId
from builderd.domain.sandboxes import LogMatch, LogPage, LogPiece


class Logs(Protocol):
    async def read_log(
        self,
        sandbox: SandboxId,
        cursor: str = "",
        *,
        tail: int | None = None,
        since: datetime | None = None,
        limit: int | None = None,
    ) -> LogPage:
        """Return complete lines after the cursor ("" is the beginning), oldest first.

        ``tail``: only so many of the last lines, at a cost that grows with them only. ``since``: without earlier lines,
        except for a few. ``limit``: a page, at most so many of the first of these lines, fewer when they are long.
        """

    async def search_log(self, sandbox: SandboxId, match: LogMatch, before: str = "", *, count: int) -> LogPiece:
        """Return the matching lines of the piece of about ``count`` complete lines before the cursor ("" is the end).

        Each line is in one piece only. No piece is longer than some MB.
        """

    async def delete_logs(self, builder: BuilderId) -> None:
        """Remove the logs of all sandboxes of this builder. Idempotent."""
