"""QA reports in the store."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from builderd.domain.ids import BuilderId
from builderd.domain.qa import QaReport, Screenshot


class QaReports(Protocol):
    def get(self, builder: BuilderId, version: int) -> QaReport | None: ...
    def save(self, report: QaReport) -> None:
        """Add or replace it; the builder must be locked."""

    def unfinished(self) -> Sequence[QaReport]:
        """Return those that are not finished or whose disk copy may still exist, the oldest request first."""

    def put_screenshots(self, builder: BuilderId, version: int, screenshots: Sequence[Screenshot]) -> None:
        """Replace the screenshots of a version."""

    def screenshot(self, builder: BuilderId, version: int, name: str) -> Screenshot | None: ...
    def delete(self, builder: BuilderId) -> None:
        """Delete the builder's reports and screenshots, except reports whose disk copy may still exist."""
