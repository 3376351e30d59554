"""Output of a build: passed on as progress and kept for its error, both up to a limit."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

#: Last lines of a build kept to explain its failure; lines of progress passed on; characters of a line.
KEPT_LINES, TOLD_LINES, LINE_LENGTH = 500, 2_000, 1_000


class Transcript:
    """Output of a build: passed on as progress and kept for its error, both up to a limit."""

    def __init__(self, progress: Callable[[str], None]) -> None:
        self._progress = progress
        self._count = 0
        self.last: deque[str] = deque(maxlen=KEPT_LINES)

    def add(self, line: str) -> None:
        shown = line if len(line) <= LINE_LENGTH else line[:LINE_LENGTH] + "…"
        self.last.append(shown)
        self._count += 1
        if self._count <= TOLD_LINES:
            self._progress(shown)
        elif self._count == TOLD_LINES + 1:
            self._progress("… (what follows is left out here)")
