"""The logs of sandboxes, as conmon writes them: ``<time> <stream> <F|P> <text>``, P for a part of a line (CRI format).

At its limit conmon replaces the log by an empty one. A second name of the first file, made at the start, keeps it: so
the beginning of a log and its newest part both stay, and what lies between is lost. Each file is a generation, known
by the time of its first line.
"""

from __future__ import annotations

import mmap
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from builderd.domain.ids import BuilderId, SandboxId
from builderd.domain.logs import LogLine, LogStream

#: Earlier logs that are kept of a builder, which may have been restarted many times.
KEPT_LOGS = 10
#: A line is cut where it gets longer than this many bytes.
MAX_LINE = 1 << 20
#: So many records more are read than lines were asked for, since a line may have begun some records earlier.
_MARGIN = 64
Content = bytes | mmap.mmap
_STREAMS = {b"stdout": LogStream.STDOUT, b"stderr": LogStream.STDERR}


@dataclass(frozen=True, slots=True)
class Cursor:
    """After ``skip`` complete lines from the offset on in this generation."""

    generation: str = ""
    offset: int = 0
    skip: int = 0

    @classmethod
    def parse(cls, text: str) -> Cursor:
        generation, offset, skip = text.rsplit("/", 2) if text else ("", "0", "0")
        return cls(generation, int(offset), int(skip))

    def __str__(self) -> str:
        return f"{self.generation}/{self.offset}/{self.skip}" if self.generation else ""


class Logs:
    """All logs of a service: ``<root>/<builder>/<sandbox>.log``."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def begin(self, builder: BuilderId, sandbox: SandboxId) -> Path:
        """An empty log for a new sandbox; the oldest ones of the builder are removed."""
        folder = self._root / builder
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _prune(folder)
        log = folder / f"{sandbox}.log"
        log.unlink(missing_ok=True)
        log.touch(mode=0o600)
        first = _first(log)
        first.unlink(missing_ok=True)
        first.hardlink_to(log)
        return log

    def read(
        self, sandbox: SandboxId, cursor: str, ended: bool, tail: int | None = None
    ) -> tuple[Sequence[LogLine], str]:
        """Complete lines after the cursor, and the next one; of an ended sandbox also a last line without its end."""
        log = next(self._root.glob(f"*/{sandbox}.log"), None)
        if log is None:
            return [], cursor
        return read_generations(_generations(log), Cursor.parse(cursor), ended, tail)

    def delete(self, builder: BuilderId) -> None:
        """Idempotent."""
        shutil.rmtree(self._root / builder, ignore_errors=True)


def _first(log: Path) -> Path:
    return log.with_suffix(".first")


def _prune(folder: Path) -> None:
    logs = sorted(folder.glob("*.log"), key=lambda log: log.stat().st_mtime, reverse=True)
    for log in logs[KEPT_LOGS:]:
        _first(log).unlink(missing_ok=True)
        log.unlink(missing_ok=True)


def _generations(log: Path) -> list[Content]:
    """The first and the newest file, oldest first; one when they are the same. Only what is looked at is read."""
    try:
        with log.open("rb") as newest, _first(log).open("rb") as first:
            same = os.path.sameopenfile(newest.fileno(), first.fileno())
            return [_map(newest)] if same else [_map(first), _map(newest)]
    except FileNotFoundError:
        return [log.read_bytes()] if log.exists() else []


def _map(file: BinaryIO) -> Content:
    """Nobody ever makes a log shorter: a full one gets another file in its place."""
    empty = os.fstat(file.fileno()).st_size == 0
    return b"" if empty else mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def read_generations(
    contents: Sequence[Content], cursor: Cursor, ended: bool, tail: int | None = None
) -> tuple[Sequence[LogLine], str]:
    """Lines from the cursor on over one or two generations, with ``tail`` only so many of the last ones.

    A generation that was lost is passed over.
    """
    keys = [_key(content) for content in contents]
    if cursor.generation in keys:
        start = keys.index(cursor.generation)
    else:
        start = len(contents) - 1 if cursor.generation else 0
        cursor = Cursor()
    found: list[LogLine] = []
    next_cursor = cursor
    for index in reversed(range(start, len(contents))):
        missing = None if tail is None else tail - len(found)
        if missing is not None and missing <= 0 and index < len(contents) - 1:
            break
        newest, at = index == len(contents) - 1, cursor if index == start else Cursor()
        lines, offset, skip = _read_last(contents[index], at, ended or not newest, missing)
        found[:0] = lines
        if newest:
            next_cursor = Cursor(keys[index], offset, skip)
    return found, str(next_cursor)


def _read_last(content: Content, cursor: Cursor, whole: bool, count: int | None) -> tuple[list[LogLine], int, int]:
    """As ``parse_log``, with only the last ``count`` lines: read from so near the end that they are whole."""
    if count is None:
        return parse_log(content, cursor.offset, cursor.skip, whole)
    records = count + _MARGIN
    while True:
        start = max(_start_of_last(content, records), cursor.offset)
        skip = cursor.skip if start == cursor.offset else 0
        lines, offset, skip = parse_log(content, start, skip, whole)
        if len(lines) >= count + (start > cursor.offset) or start == cursor.offset:
            return lines[max(len(lines) - count, 0) :], offset, skip
        records *= 4


def _start_of_last(content: Content, records: int) -> int:
    """Where the last so many records begin."""
    position = len(content)
    for _ in range(records + 1):
        position = content.rfind(b"\n", 0, position)
        if position < 0:
            return 0
    return position + 1


def _key(content: Content) -> str:
    return content[: content.find(b" ")].decode(errors="replace") if content.find(b"\n") >= 0 else ""


class _Part:
    """A line of which the end has not come yet."""

    def __init__(self, offset: int, time: datetime) -> None:
        self.offset = offset
        self.time = time
        self.text = bytearray()


def parse_log(content: Content, offset: int, skip: int, whole: bool) -> tuple[list[LogLine], int, int]:
    """The lines from an offset on without the first ``skip`` of them, and where to go on.

    Where a line is still open, one goes on from its beginning and skips those that were complete. ``whole``: no more
    will come, so what is open is a line.
    """
    parts: dict[LogStream, _Part] = {}
    lines: list[LogLine] = []
    complete: list[int] = []
    position = offset
    for time, stream, flag, text, end in _records(content, offset):
        part = parts.setdefault(stream, _Part(position, time))
        part.text += text
        if flag == b"F" or len(part.text) > MAX_LINE:
            lines.append(_line(stream, parts.pop(stream)))
            complete.append(position)
        position = end
    if whole:
        lines.extend(_line(stream, part) for stream, part in parts.items())
        return lines[skip:], position, 0
    for stream in [stream for stream, part in parts.items() if position - part.offset > MAX_LINE]:
        lines.append(_line(stream, parts.pop(stream)))
        complete.append(position)
    resume = min((part.offset for part in parts.values()), default=position)
    return lines[skip:], resume, sum(1 for start in complete if start >= resume)


class Lines:
    """Puts lines together from the pieces of a log, as far as each has come."""

    def __init__(self) -> None:
        self._open: dict[LogStream, _Part] = {}

    def add(self, content: bytes) -> tuple[list[str], int]:
        """The lines that this completes, and how much of it was whole records: the next piece begins there."""
        lines = []
        for time, stream, flag, text, _ in _records(content, 0):
            part = self._open.setdefault(stream, _Part(0, time))
            part.text += text
            if flag == b"F" or len(part.text) > MAX_LINE:
                lines.append(_line(stream, self._open.pop(stream)).text)
        return lines, content.rfind(b"\n") + 1

    def end(self) -> list[str]:
        """Those of which no more will come."""
        lines = [_line(stream, part).text for stream, part in self._open.items()]
        self._open.clear()
        return lines


def _records(content: Content, offset: int) -> Iterator[tuple[datetime, LogStream, bytes, bytes, int]]:
    """Whole records from an offset on, each with the offset after it; one that cannot be read is passed over."""
    while (end := content.find(b"\n", offset)) >= 0:
        fields = content[offset:end].split(b" ", 3)
        offset = end + 1
        if len(fields) == 4 and fields[1] in _STREAMS:
            yield _time(fields[0]), _STREAMS[fields[1]], fields[2][:1], fields[3], offset


def _time(text: bytes) -> datetime:
    return datetime.fromisoformat(text.decode()).astimezone(UTC)


def _line(stream: LogStream, part: _Part) -> LogLine:
    return LogLine(part.time, stream, part.text.decode(errors="replace").rstrip("\r"))
