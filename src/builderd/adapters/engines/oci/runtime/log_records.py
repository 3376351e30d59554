"""Records of a sandbox's log, as conmon writes them: ``<time> <stream> <F|P> <text>`` (CRI format).

P stands for a part of a line, which the next record of its stream continues; the other stream's record ends it. A log
has one file or two, its generations, each known by the time of its first line.
"""

from __future__ import annotations

import mmap
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import NamedTuple

from builderd.domain.sandboxes import LogLine, LogMatch, LogPage, LogPiece, LogStream

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
