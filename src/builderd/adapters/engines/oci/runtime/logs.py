"""Logs of sandboxes, as conmon writes them: ``<time> <stream> <F|P> <text>``, P for a part of a line (CRI format).

At its limit conmon replaces the log by an empty one. A second name of the first file, made at the start, keeps it: so
the beginning of a log and its newest part both stay, and what lies between is lost. Each file is a generation, known
by the time of its first line.
"""

from __future__ import annotations

import mmap
import os
import shutil
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import BinaryIO

from builderd.adapters.engines.oci.runtime.log_records import Content, Cursor, read_generations, search_generations
from builderd.adapters.engines.oci.runtime.records import is_name
from builderd.domain.ids import BuilderId, SandboxId
from builderd.domain.sandboxes import LogMatch, LogPage, LogPiece
from builderd.linux.threads import run_to_completion

#: Earlier logs that are kept of a builder, which may have been restarted many times.
KEPT_LOGS = 10
#: Logs whose paths are remembered.
_REMEMBERED = 1_000


class Logs:
    """Logs of a service: ``<root>/<builder>/<sandbox>.log``. Implements ``ports.engine.Logs``.

    ``is_running`` returns True for a sandbox that runs: more may be written to its log.
    """

    def __init__(self, root: Path, is_running: Callable[[SandboxId], bool]) -> None:
        self._root = root
        self._is_running = is_running
        self._found: dict[SandboxId, Path] = {}

    def begin(self, builder: BuilderId, sandbox: SandboxId) -> Path:
        """Create an empty log for a new sandbox; remove the oldest logs of the builder."""
        log = self._folder(builder) / f"{sandbox}.log"
        log.unlink(missing_ok=True)
        log.touch(mode=0o600)
        return _with_first(log)

    def _folder(self, builder: BuilderId) -> Path:
        folder = self._root / builder
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _prune(folder)
        return folder

    async def read_log(
        self,
        sandbox: SandboxId,
        cursor: str = "",
        *,
        tail: int | None = None,
        since: datetime | None = None,
        limit: int | None = None,
    ) -> LogPage:
        """Return complete lines after the cursor, and of an ended sandbox also an open last line."""
        ended = not self._is_running(sandbox)

        def read() -> LogPage:
            log = self._find(sandbox)
            if log is None:
                return LogPage([], cursor, more=False)
            return read_generations(_generations(log), Cursor.parse(cursor), ended, tail, since, limit)

        return await run_to_completion(read)

    async def search_log(self, sandbox: SandboxId, match: LogMatch, before: str = "", *, count: int) -> LogPiece:
        ended = not self._is_running(sandbox)

        def search() -> LogPiece:
            log = self._find(sandbox)
            if log is None:
                return LogPiece([], "", before, more=False)
            return search_generations(_generations(log), match, Cursor.parse(before), ended, count)

        return await run_to_completion(search)

    def _find(self, sandbox: SandboxId) -> Path | None:
        """Return a sandbox's log. The folders of all builders are looked through once, not for each page."""
        if not is_name(sandbox):
            return None
        log = self._found.get(sandbox)
        if log is None or not log.exists():
            log = next(self._root.glob(f"*/{sandbox}.log"), None)
            if log is None:
                return None
            if len(self._found) >= _REMEMBERED:
                self._found.clear()
            self._found[sandbox] = log
        return log

    async def delete_logs(self, builder: BuilderId) -> None:
        folder = self._root / builder
        await run_to_completion(shutil.rmtree, folder, ignore_errors=True)
        for sandbox, log in list(self._found.items()):
            if log.parent == folder:
                self._found.pop(sandbox, None)


def _with_first(log: Path) -> Path:
    first = _first(log)
    first.unlink(missing_ok=True)
    first.hardlink_to(log)
    return log


def _first(log: Path) -> Path:
    return log.with_suffix(".first")


def _prune(folder: Path) -> None:
    logs = sorted(folder.glob("*.log"), key=lambda log: log.stat().st_mtime, reverse=True)
    for log in logs[KEPT_LOGS:]:
        _first(log).unlink(missing_ok=True)
        log.unlink(missing_ok=True)


def _generations(log: Path) -> list[Content]:
    """Return the oldest and the newest file, one when they are the same. Content is read on demand (mmap)."""
    try:
        with log.open("rb") as newest, _first(log).open("rb") as first:
            same = os.path.sameopenfile(newest.fileno(), first.fileno())
            return [_map(newest)] if same else [_map(first), _map(newest)]
    except FileNotFoundError:
        return [log.read_bytes()] if log.exists() else []


def _map(file: BinaryIO) -> Content:
    """Map a log file. It never shrinks: a full one is replaced by another file."""
    empty = os.fstat(file.fileno()).st_size == 0
    return b"" if empty else mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
