"""Progress of long work, line by line."""

from __future__ import annotations

from collections.abc import Callable

#: Called with one line of progress at a time; must not block.
Progress = Callable[[str], None]
