"""Logs of sandboxes, as conmon writes them: ``<time> <stream> <F|P> <text>``, P for a part of a line (CRI format).

At its limit conmon replaces the log by an empty one. A second name of the first file, made at the start, keeps it: so
the beginning of a log and its newest part both stay, and what lies between is lost. Each file is a generation, known
by the time of its first line.
"""

from __future__ import annotations

import mmap
import os
import shutil
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import BinaryIO, NamedTuple

from builderd.core.ids import BuilderId, SandboxId
from builderd.engine.oci.runtime.records import is_name
from builderd.linux.threads import run_to_completion
from builderd.sandboxes.model import LogLine, LogMatch, LogPage, LogPiece, LogStream

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
        folder = self._root / builder
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        logs = sorted(folder.glob("*.log"), key=lambda log: log.stat().st_mtime, reverse=True)
        log = folder / f"{sandbox}.log"
        for old in (*logs[KEPT_LOGS:], log):
            old.unlink(missing_ok=True)
            _first(old).unlink(missing_ok=True)
        log.touch(mode=0o600)
        _first(log).hardlink_to(log)
        return log

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
            return read_generations(_files_of(log), Cursor.parse(cursor), ended, tail, since, limit)

        return await run_to_completion(read)

    async def search_log(self, sandbox: SandboxId, match: LogMatch, before: str = "", *, count: int) -> LogPiece:
        ended = not self._is_running(sandbox)

        def search() -> LogPiece:
            log = self._find(sandbox)
            if log is None:
                return LogPiece([], "", before, more=False)
            return search_generations(_files_of(log), match, Cursor.parse(before), ended, count)

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


def _first(log: Path) -> Path:
    return log.with_suffix(".first")


def _files_of(log: Path) -> list[Content]:
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


#: A line is cut where its records get longer than this many bytes.
MAX_LINE = 1 << 20
#: A page ends with the line with which it has so many characters.
PAGE_SIZE = 1 << 18
#: Bytes of a log that are searched at once.
PIECE_SIZE = 1 << 20
Content = bytes | mmap.mmap
_NEVER = datetime.max.replace(tzinfo=UTC)
_STREAMS = {b"stdout": LogStream.STDOUT, b"stderr": LogStream.STDERR}


class Cursor(NamedTuple):
    """Position between two lines: a byte of a generation."""

    generation: str = ""
    offset: int = 0

    @classmethod
    def parse(cls, text: str) -> Cursor:
        generation, _, offset = text.rpartition("/")
        return cls(generation, int(offset or 0))

    def __str__(self) -> str:
        return f"{self.generation}/{self.offset}" if self.generation else ""


class Generation(NamedTuple):
    """File of a log. ``whole``: nothing more is written to it."""

    key: str
    content: Content
    whole: bool


def read_generations(
    contents: Sequence[Content],
    cursor: Cursor,
    ended: bool,
    tail: int | None = None,
    since: datetime | None = None,
    limit: int | None = None,
) -> LogPage:
    """Return lines from the cursor on over one or two generations, as ``Logs.read_log``.

    A generation that was lost is passed over.
    """
    generations = _generations(contents, ended)
    lost = (len(contents) - 1 if cursor.generation else 0, 0)
    position = next(((number, cursor.offset) for number in _numbers(generations, cursor)), lost)
    if since is not None:
        position = max(position, _since(generations, since))
    if tail is not None:
        position = max(position, _before_last(generations, tail))
    found: list[LogLine] = []
    size = 0
    number, offset = position
    for key, content, whole in generations[number:]:
        cursor = Cursor(key, offset)
        for line, end in lines_of(content, offset, whole):
            if limit is not None and (len(found) >= limit or size >= PAGE_SIZE):
                return LogPage(found, str(cursor), more=True)
            found.append(line)
            size += len(line.text)
            cursor = Cursor(key, end)
        offset = 0
    return LogPage(found, str(cursor), more=False)


def search_generations(
    contents: Sequence[Content], match: LogMatch, before: Cursor, ended: bool, count: int
) -> LogPiece:
    """Return the matching lines of the piece of about ``count`` lines before the cursor, as ``Logs.search_log``.

    A piece is of one generation.
    """
    generations = _generations(contents, ended)
    number = next(_numbers(generations, before), -1)
    if number < 0:
        if before.generation or not generations:
            return LogPiece([], "", str(before), more=False)
        number = len(generations) - 1
    key, content, whole = generations[number]
    end = before.offset if before.generation else len(content)
    start, _ = _back(content, end, count, end - PIECE_SIZE)
    found = list(lines_of(content[start:end], 0, whole or bool(before.generation)))
    after = before if before.generation else Cursor(key, start + (found[-1][1] if found else 0))
    lines = [line for line, _ in found if match.passes(line)]
    is_older = match.since is not None and _time_at(content, start) < match.since
    if start == 0 and number > 0 and not is_older:
        earlier = generations[number - 1]
        return LogPiece(lines, str(Cursor(earlier.key, len(earlier.content))), str(after), more=True)
    return LogPiece(lines, str(Cursor(key, start)) if start else "", str(after), start > 0 and not is_older)


def _generations(contents: Sequence[Content], ended: bool) -> list[Generation]:
    """Return the generations with a line; a file that has just replaced a full one is still empty."""
    found = [Generation(_key(one), one, ended or number < len(contents) - 1) for number, one in enumerate(contents)]
    return [one for one in found if one.key]


def _numbers(generations: Sequence[Generation], cursor: Cursor) -> Iterator[int]:
    """Yield the number of the cursor's generation."""
    return (number for number, one in enumerate(generations) if one.key == cursor.generation)


def _since(generations: Sequence[Generation], since: datetime) -> tuple[int, int]:
    """Return the position of the first line of this time or later, or of the line that is open then."""
    for number, (_, content, _) in reversed(list(enumerate(generations))):
        offset = bisect_left(range(len(content)), since, key=partial(_time_at, content))
        if offset > 0:
            return number, _begin_of_line(content, offset)
    return 0, 0


def _before_last(generations: Sequence[Generation], count: int) -> tuple[int, int]:
    """Return the position of the last ``count`` lines, without a line that is still open."""
    for number, (_, content, whole) in reversed(list(enumerate(generations))):
        end = content.rfind(b"\n") + 1
        if not whole and end and _header(content, _record_before(content, end))[1] == b"P":
            end, _ = _back(content, end, 1)
        offset, found = _back(content, end, count)
        if found >= count:
            return number, offset
        count -= found
    return 0, 0


def _back(content: Content, end: int, count: int, least: int = 0) -> tuple[int, int]:
    """Return where the last ``count`` lines before ``end`` begin, and their number: fewer at the byte ``least``."""
    offset, found = end, 0
    while offset > max(least, 0) and found < count:
        offset = _begin_of_line(content, _record_before(content, offset))
        found += 1
    return offset, found


def _begin_of_line(content: Content, offset: int) -> int:
    """Return the begin of the line to which the record at this byte belongs; no further than a line may be long."""
    least = offset - MAX_LINE
    while offset > max(least, 0):
        before = _record_before(content, offset)
        stream, flag = _header(content, before)
        if flag != b"P" or stream != _header(content, offset)[0]:
            return offset
        offset = before
    return offset


def _record_before(content: Content, offset: int) -> int:
    return content.rfind(b"\n", 0, offset - 1) + 1


def _header(content: Content, offset: int) -> tuple[bytes, bytes]:
    """Return stream and flag of the record at this byte."""
    fields = content[offset : offset + 64].split(b" ", 3)
    return (fields[1], fields[2][:1]) if len(fields) > 2 else (b"", b"")


def _time_at(content: Content, position: int) -> datetime:
    """Return the time of the record at this byte, or of the next readable one."""
    record = next(records(content, content.rfind(b"\n", 0, position) + 1), None)
    return record[0] if record else _NEVER


def _key(content: Content) -> str:
    return content[: content.find(b" ")].decode(errors="replace") if content.find(b"\n") >= 0 else ""


def lines_of(content: Content, offset: int, whole: bool) -> Iterator[tuple[LogLine, int]]:
    """Yield the complete lines from a byte on, each with the byte after it. ``whole``: so is an open one at the end."""
    begin, text, first = offset, b"", None
    for time, stream, flag, part, end in records(content, offset):
        if first is not None and first[1] is not stream:
            yield _line(*first, text), begin
            first, text = None, b""
        first = first or (time, stream, begin)
        text += part
        begin = end
        if flag == b"F" or end - first[2] > MAX_LINE:
            yield _line(*first, text), end
            first, text = None, b""
    if first is not None and whole:
        yield _line(*first, text), begin


def records(content: Content, offset: int) -> Iterator[tuple[datetime, LogStream, bytes, bytes, int]]:
    """Yield whole records from an offset on, each with the offset after it; unreadable ones are skipped."""
    while (end := content.find(b"\n", offset)) >= 0:
        fields = content[offset:end].split(b" ", 3)
        offset = end + 1
        if len(fields) == 4 and fields[1] in _STREAMS:
            yield _time(fields[0]), _STREAMS[fields[1]], fields[2][:1], fields[3], offset


def _time(text: bytes) -> datetime:
    return datetime.fromisoformat(text.decode()).astimezone(UTC)


def _line(time: datetime, stream: LogStream, _: int, text: bytes) -> LogLine:
    return LogLine(time, stream, text.decode(errors="replace").rstrip("\r"))
