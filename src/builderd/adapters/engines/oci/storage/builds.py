"""Builds: one command in a sandbox of its own, which reaches only what is bound into it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

#: Called with each line that the build prints; must not block.
Output = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Bind:
    """Bind of the host's ``source`` at ``target``.

    ``owner`` is the uid on the disk that is root inside (with the 65535 above it); None binds it as it is.
    """

    source: Path
    target: str
    read_only: bool
    owner: int | None


@dataclass(frozen=True, slots=True)
class BuildRun:
    """Parameters of a build sandbox. ``id`` is unique on the host, in hex; ``cpu`` in vCPU, ``memory`` in bytes.

    The root is the base, read-only, with a ``/tmp`` in memory. The command runs as root of a user namespace
    without any capability. ``layer`` lies between the base and the command's own binds, read-only, ``tenant`` is whose
    NAT ports it takes. ``env`` is complete but for what the host's way to the network needs. ``is_background``: apps go
    first where CPUs are short.
    """

    id: str
    argv: tuple[str, ...]
    env: Mapping[str, str] = field(repr=False)
    cwd: str
    binds: tuple[Bind, ...]
    network: bool
    cpu: float
    memory: int
    processes: int
    timeout_seconds: int
    layer: Path | None = None
    tenant: str = ""
    is_background: bool = False


@dataclass(frozen=True, slots=True)
class BuildExit:
    """Exit of a build. ``exit_code`` is not 0 when it ran out of memory or time."""

    exit_code: int
    out_of_memory: bool = False
    timed_out: bool = False


class BuildRunner(Protocol):
    async def run_build(self, run: BuildRun, output: Output) -> BuildExit:
        """Run it to its end. When this returns, raises or is cancelled, no process of it is left."""


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
