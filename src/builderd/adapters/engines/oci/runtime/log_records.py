"""Records of a sandbox's log, as conmon writes them: ``<time> <stream> <F|P> <text>`` (CRI format).

P stands for a part of a line. A log has one file or two, its generations, each known by the time of its first line.
"""

from __future__ import annotations

import mmap
import sys
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import NamedTuple

from builderd.domain.sandboxes import LogLine, LogPage, LogStream

#: A line is cut where it gets longer than this many bytes.
MAX_LINE = 1 << 20
#: So many records more are read than lines were asked for, since a line may have begun some records earlier.
MARGIN = 64
#: A page ends with the line with which it has so many characters.
PAGE_SIZE = 1 << 18
Content = bytes | mmap.mmap
_NEVER = datetime.max.replace(tzinfo=UTC)
_STREAMS = {b"stdout": LogStream.STDOUT, b"stderr": LogStream.STDERR}


@dataclass(frozen=True, slots=True)
class Cursor:
    """Position after ``skip`` complete lines from the offset in this generation."""

    generation: str = ""
    offset: int = 0
    skip: int = 0

    @classmethod
    def parse(cls, text: str) -> Cursor:
        generation, offset, skip = text.rsplit("/", 2) if text else ("", "0", "0")
        return cls(generation, int(offset), int(skip))

    def __str__(self) -> str:
        return f"{self.generation}/{self.offset}/{self.skip}" if self.generation else ""


class Generation(NamedTuple):
    """File of a log. ``whole``: nothing more is written to it."""

    key: str
    content: Content
    whole: bool


class _Position(NamedTuple):
    """Position after ``skip`` complete lines from the offset in the generation with this number."""

    generation: int = 0
    offset: int = 0
    skip: int = 0


def read_generations(
    contents: Sequence[Content],
    cursor: Cursor,
    ended: bool,
    tail: int | None = None,
    since: datetime | None = None,
    limit: int | None = None,
) -> LogPage:
    """Return lines from the cursor on over one or two generations, as ``Engine.read_log``.

    A generation that was lost is passed over.
    """
    newest = len(contents) - 1
    generations = [Generation(key_of(one), one, ended or number < newest) for number, one in enumerate(contents)]
    position = _position_of(generations, cursor)
    # A file that has just replaced a full one is still empty and has no key.
    generations = [one for one in generations if one.key]
    if since is not None:
        position = max(position, _since(generations, since))
    if tail is not None:
        position = _before_last(generations, position, tail)
    return _read_on(generations, position, cursor, limit)


def _position_of(generations: Sequence[Generation], cursor: Cursor) -> _Position:
    for number, generation in enumerate(generations):
        if generation.key and generation.key == cursor.generation:
            return _Position(number, cursor.offset, cursor.skip)
    return _Position(len(generations) - 1) if cursor.generation else _Position()


def _since(generations: Sequence[Generation], since: datetime) -> _Position:
    """Return a position some records before the first of this time or later: its line may have begun there."""
    for number, (_, content, _) in reversed(list(enumerate(generations))):
        offset = bisect_left(range(len(content)), since, key=partial(time_at, content))
        if offset > 0:
            return _Position(number, back(content, offset, MARGIN))
    return _Position()


def _before_last(generations: Sequence[Generation], first: _Position, count: int) -> _Position:
    """Return the position of the last ``count`` lines, or ``first`` when there are fewer."""
    for number in reversed(range(first.generation, len(generations))):
        at = first if number == first.generation else _Position(number)
        offset, found = _near_end(generations[number], at.offset, count)
        skipped = at.skip if offset == at.offset else 0
        if found - skipped >= count:
            return _Position(number, offset, found - count)
        count -= found - skipped
    return first


def _near_end(generation: Generation, offset: int, count: int) -> tuple[int, int]:
    """Return an offset near the end, ``offset`` or later, with at least ``count`` lines after it, and their number."""
    looked_at = count + MARGIN
    while True:
        start = max(back(generation.content, len(generation.content), looked_at), offset)
        found = parse_log(generation.content, start, sys.maxsize, generation.whole).complete
        if found > count or start == offset:
            return start, found
        looked_at *= 4


def _read_on(generations: Sequence[Generation], position: _Position, cursor: Cursor, limit: int | None) -> LogPage:
    found: list[LogLine] = []
    more = False
    for key, content, whole in generations[position.generation :]:
        missing = None if limit is None else limit - len(found)
        read = parse_log(content, position.offset, position.skip, whole, missing)
        found += read.lines
        cursor, more, position = Cursor(key, read.offset, read.skip), read.more, _Position()
        if more:
            break
    return LogPage(found, str(cursor), more)


def back(content: Content, position: int, count: int, least: int = 0) -> int:
    """Return the offset of the record so many records before this one, or of one after the byte ``least``."""
    for _ in range(count + 1):
        before = content.rfind(b"\n", max(least, 0), position)
        if before < 0:
            return 0 if least <= 0 else position + 1
        position = before
    return position + 1


def time_at(content: Content, position: int) -> datetime:
    """Return the time of the record at this byte, or of the next readable one."""
    record = next(records(content, content.rfind(b"\n", 0, position) + 1), None)
    return record[0] if record else _NEVER


def key_of(content: Content) -> str:
    return content[: content.find(b" ")].decode(errors="replace") if content.find(b"\n") >= 0 else ""


class _Part:
    """Open line: its end has not been written yet."""

    def __init__(self, offset: int, time: datetime) -> None:
        self.offset = offset
        self.time = time
        self.text = bytearray()


class Parsed(NamedTuple):
    """Lines and the position after them.

    ``complete`` counts those that were skipped too. ``more``: there are records that were not looked at.
    """

    lines: list[LogLine]
    offset: int
    skip: int
    complete: int
    more: bool


def parse_log(content: Content, offset: int, skip: int, whole: bool, limit: int | None = None) -> Parsed:
    """Return the lines from an offset on, without the first ``skip``, and the position after them.

    Where a line is still open, one continues from its beginning and skips those that were complete. ``whole``: no more
    will come, so what is open is a line. With ``limit`` at most a page.
    """
    parsing = _Parsing(offset, skip)
    for record in records(content, offset):
        if limit is not None and parsing.is_full(limit):
            return parsing.page()
        parsing.add(*record)
    # Lines open at the end make a page of their own.
    return parsing.page() if whole and limit is not None and parsing.has_rest(limit) else parsing.end(whole)


class _Parsing:
    """Assembler of lines from consecutive records."""

    def __init__(self, offset: int, skip: int) -> None:
        self._position = offset
        self._skip = skip
        self._lines: list[LogLine] = []
        self._size = 0
        self._complete = 0
        self._parts: dict[LogStream, _Part] = {}
        #: Where no line was open last and after how many, and where lines became complete since.
        self._seam = (offset, 0)
        self._ends: list[int] = []

    def is_full(self, limit: int) -> bool:
        return self._complete >= self._skip and (len(self._lines) >= limit or self._size >= PAGE_SIZE)

    def has_rest(self, limit: int) -> bool:
        """Return True when lines are open at the end that do not belong on this page."""
        rest = self._complete + len(self._parts) - max(self._complete, self._skip)
        return rest > 0 and (limit == 0 or bool(self._lines))

    def add(self, time: datetime, stream: LogStream, flag: bytes, text: bytes, end: int) -> None:
        part = self._parts.setdefault(stream, _Part(self._position, time))
        part.text += text
        if flag == b"F" or len(part.text) > MAX_LINE:
            self._close(stream)
            self._ends.append(self._position)
        self._position = end
        if not self._parts:
            self._ends.clear()
            self._seam = (end, len(self._lines))

    def page(self) -> Parsed:
        """Return the lines so far; the page ends where no line is open if possible, so that lines keep their order."""
        offset, count = self._seam
        if self._parts and count:
            return Parsed(self._lines[:count], offset, 0, self._complete, more=True)
        return self.end(whole=False)._replace(more=True)

    def end(self, whole: bool) -> Parsed:
        for stream, part in list(self._parts.items()):
            if whole or self._position - part.offset > MAX_LINE:
                self._close(stream)
        resume = min((part.offset for part in self._parts.values()), default=self._position)
        skip = sum(1 for end in self._ends if end >= resume)
        return Parsed(self._lines, resume, skip, self._complete, more=False)

    def _close(self, stream: LogStream) -> None:
        part = self._parts.pop(stream)
        self._complete += 1
        if self._complete > self._skip:
            line = _line(stream, part)
            self._lines.append(line)
            self._size += len(line.text)


class Lines:
    """Assembler of lines from successive pieces of a log."""

    def __init__(self) -> None:
        self._open: dict[LogStream, _Part] = {}

    def add(self, content: bytes) -> tuple[list[str], int]:
        """Return the lines that this piece completes, and the bytes of whole records: the next piece begins there."""
        lines = []
        for time, stream, flag, text, _ in records(content, 0):
            part = self._open.setdefault(stream, _Part(0, time))
            part.text += text
            if flag == b"F" or len(part.text) > MAX_LINE:
                lines.append(_line(stream, self._open.pop(stream)).text)
        return lines, content.rfind(b"\n") + 1

    def end(self) -> list[str]:
        """Return the open lines, at the end of the log."""
        lines = [_line(stream, part).text for stream, part in self._open.items()]
        self._open.clear()
        return lines


def records(content: Content, offset: int) -> Iterator[tuple[datetime, LogStream, bytes, bytes, int]]:
    """Yield whole records from an offset on, each with the offset after it; unreadable ones are skipped."""
    while (end := content.find(b"\n", offset)) >= 0:
        fields = content[offset:end].split(b" ", 3)
        offset = end + 1
        if len(fields) == 4 and fields[1] in _STREAMS:
            yield _time(fields[0]), _STREAMS[fields[1]], fields[2][:1], fields[3], offset


def _time(text: bytes) -> datetime:
    return datetime.fromisoformat(text.decode()).astimezone(UTC)


def _line(stream: LogStream, part: _Part) -> LogLine:
    return LogLine(part.time, stream, part.text.decode(errors="replace").rstrip("\r"))
