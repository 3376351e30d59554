"""Tools: trusted programs, such as restic, that work on a disk where the disk is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from builderd.domain.ids import DiskId
from builderd.ports.engine.progress import Progress

#: Names below ``/`` at which a tool may see folders of the service's machine.
TOOL_FOLDERS = ("repository", "cache", "work")


@dataclass(frozen=True, slots=True)
class Tool:
    """Trusted program, such as restic, that works on a disk where the disk is; not an app.

    It runs as the user who owns the disk's files, in a sandbox of its own, and sees the content of ``/app`` of the
    disk at ``/disk`` (read-only unless ``writable``), ``folders`` at their names below ``/`` (of ``TOOL_FOLDERS``), the
    base, and nothing else; its working directory is its own ``/tmp``. ``folders`` are folders of the machine of the
    service, made if missing, and written to by tools alone; an engine whose disks lie elsewhere raises
    ``EngineUnavailable``. ``reads_all`` lets it read files whose own mode would not. With ``network`` it reaches what
    this machine reaches, otherwise nothing. ``env`` may hold secrets and is never logged; ``argv`` may not.
    ``hostname`` is the host name that it sees.
    """

    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    disk: DiskId | None = None
    writable: bool = False
    reads_all: bool = False
    folders: Mapping[str, Path] = field(default_factory=dict)
    network: bool = False
    hostname: str = "tool"
    timeout_seconds: float = 3600


@dataclass(frozen=True, slots=True)
class ToolExit:
    """Exit of a tool. ``exit_code`` is not 0 when it ran out of memory or time.

    ``store_full``: it failed on a disk while the store of all disks, not this one's limit, had no room.
    """

    exit_code: int
    out_of_memory: bool = False
    timed_out: bool = False
    store_full: bool = False


class Tools(Protocol):
    async def run_tool(self, tool: Tool, output: Progress) -> ToolExit:
        """Run it to its end, passing on each line that it prints. Nothing of it is left afterwards.

        A tool left running by a service that died is ended by the next one before it is ready. Raises ``NotFound``
        without the disk, ``InvalidState`` for a writable disk that a sandbox runs on, ``EngineUnavailable`` when the
        program is not there.
        """
