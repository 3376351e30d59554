"""Logs of sandboxes: files of s6-log on the root of each instance, read through the files API.

Each stream has a folder. A line is ``<day> <time>  <text>``, its time with nanoseconds; many lines may have one time.
``current`` is replaced at its limit, earlier files are ``@<TAI64N label>.s`` and so in the order of their names. A
cursor has a position in each stream: a time and how many lines of it were read, valid also while files are rotated.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from heapq import merge
from typing import NamedTuple

from builderd.core.ids import BuilderId, SandboxId
from builderd.engine.incus.client import IncusError, IncusNotFound
from builderd.engine.incus.image import LOG
from builderd.engine.incus.instances import Instances, own_of
from builderd.engine.incus.reports import name_of
from builderd.sandboxes.model import LogLine, LogMatch, LogPage, LogPiece, LogStream

#: A page ends with the line with which it has so many characters.
PAGE_SIZE = 1 << 18
#: Folder of each stream.
STREAMS = {"out": LogStream.STDOUT, "err": LogStream.STDERR}
_CURRENT = "current"
#: Length of ``2026-11-28 02:15:36.940812413``.
_TIME_LENGTH = 29


class Stamped(NamedTuple):
    """A line of one stream; ``time`` as text, in the order of time."""

    time: str
    stream: str
    text: str


class Position(NamedTuple):
    """After ``read`` lines of this time; "" is the beginning."""

    time: str = ""
    read: int = 0


class Logs:
    """Implements ``ports.engine.Logs``."""

    def __init__(self, instances: Instances) -> None:
        self._client = instances.client
        self._instances = instances

    async def read_log(
        self,
        sandbox: SandboxId,
        cursor: str = "",
        *,
        tail: int | None = None,
        since: datetime | None = None,
        limit: int | None = None,
    ) -> LogPage:
        if not sandbox.isalnum():
            return LogPage([], cursor, more=False)
        instance, positions = name_of(sandbox), parse_cursor(cursor)
        streams = await asyncio.gather(
            *(self._stream(instance, name, positions[name].time, tail, since) for name in STREAMS)
        )
        return page_of(dict(zip(STREAMS, streams, strict=True)), cursor, tail, since, limit)

    async def search_log(self, sandbox: SandboxId, match: LogMatch, before: str = "", *, count: int) -> LogPiece:
        """The first piece is of the newest files that have so many lines, a second one of all files before it."""
        if not sandbox.isalnum():
            return LogPiece([], "", before, more=False)
        instance, tail = name_of(sandbox), None if before else count
        streams = await asyncio.gather(*(self._stream(instance, name, "", tail, match.since) for name in STREAMS))
        return await asyncio.to_thread(piece_of, dict(zip(STREAMS, streams, strict=True)), match, before, tail)

    async def delete_logs(self, builder: BuilderId) -> None:
        # One that ended on a member that was away was not removed yet, and has a log all the same.
        ended = [
            one["name"]
            for one in await self._instances.all()
            if (own := own_of(one)).get("builder") == builder and ("removed" in own or one["status"] == "Stopped")
        ]
        await asyncio.gather(*map(self._instances.delete, ended))

    async def _stream(
        self, instance: str, name: str, after: str, tail: int | None, since: datetime | None
    ) -> Sequence[Stamped]:
        """Return the lines of all files of a stream that the page may need, oldest first."""
        try:
            names = await self._client.file(instance, f"{LOG}/{name}")
        except IncusNotFound:
            return []
        if isinstance(names, bytes):
            return []
        files = [file for file in sorted(names) if file.startswith("@")] + [_CURRENT] * (_CURRENT in names)
        first = max(after, _stamp(since) if since else "")
        found: deque[Sequence[Stamped]] = deque()
        count = 0
        for file in reversed(files):
            # Rotated or removed since it was listed.
            content: object = None
            with suppress(IncusNotFound, IncusError):
                content = await self._client.file(instance, f"{LOG}/{name}/{file}")
            lines = parse(name, content) if isinstance(content, bytes) else ()
            found.appendleft(lines)
            count += len(lines)
            if (tail is not None and not first and count > tail) or (first and lines and lines[0].time < first):
                break
        return [line for lines in found for line in lines]


def parse(stream: str, content: bytes) -> Sequence[Stamped]:
    """Return each complete line."""
    decoded = (line.decode(errors="replace") for line in content.split(b"\n")[:-1])
    return [
        Stamped(line[:_TIME_LENGTH].replace(" ", "T"), stream, line[_TIME_LENGTH + 2 :])
        for line in decoded
        if len(line) >= _TIME_LENGTH
    ]


def parse_cursor(cursor: str) -> Mapping[str, Position]:
    """Return the position in each stream."""
    positions = dict.fromkeys(STREAMS, Position())
    for name, text in zip(STREAMS, cursor.split(","), strict=False):
        time, _, read = text.partition("/")
        if time:
            positions[name] = Position(time, int(read))
    return positions


def page_of(
    streams: Mapping[str, Sequence[Stamped]],
    cursor: str,
    tail: int | None,
    since: datetime | None,
    limit: int | None,
) -> LogPage:
    """Return the page of these lines, which may begin before the cursor, in the order of their times."""
    positions = parse_cursor(cursor)
    rest = [lines[_start(lines, positions[name]) :] for name, lines in streams.items()]
    ordered = list(merge(*rest, key=lambda line: line.time))
    start = 0 if tail is None else max(len(ordered) - tail, 0)
    if since is not None:
        first = _stamp(since)
        start = max(start, next((number for number, line in enumerate(ordered) if line.time >= first), len(ordered)))
    end, size = start, 0
    while end < len(ordered) and (limit is None or (end - start < limit and size < PAGE_SIZE)):
        size += len(ordered[end].text)
        end += 1
    shown = [LogLine(_time(line.time), STREAMS[line.stream], line.text) for line in ordered[start:end]]
    return LogPage(shown, _cursor(positions, ordered[:end], cursor), end < len(ordered))


def piece_of(streams: Mapping[str, Sequence[Stamped]], match: LogMatch, before: str, tail: int | None) -> LogPiece:
    """Return the matching lines among the last ``tail`` before the cursor, in the order of their times."""
    positions = parse_cursor(before)
    earlier = [lines[: _start(lines, positions[name])] if before else lines for name, lines in streams.items()]
    ordered = list(merge(*earlier, key=lambda line: line.time))
    start = 0 if tail is None else max(len(ordered) - tail, 0)
    lines = [LogLine(_time(line.time), STREAMS[line.stream], line.text) for line in ordered[start:]]
    begin = _cursor(dict.fromkeys(STREAMS, Position()), ordered[:start], "")
    end = before or _cursor(dict.fromkeys(STREAMS, Position()), ordered, "")
    return LogPiece([line for line in lines if match.passes(line)], begin, end, start > 0)


def _start(lines: Sequence[Stamped], position: Position) -> int:
    """Return the index of the first line after the position."""
    if not position.time:
        return 0
    first = next((number for number, line in enumerate(lines) if line.time >= position.time), len(lines))
    return first + sum(1 for line in lines[first : first + position.read] if line.time == position.time)


def _cursor(positions: Mapping[str, Position], passed: Sequence[Stamped], before: str) -> str:
    """Return the position after the lines that were passed."""
    if not passed:
        return before
    after = dict(positions)
    for line in passed:
        known = after[line.stream]
        after[line.stream] = Position(line.time, known.read + 1 if known.time == line.time else 1)
    return ",".join(f"{position.time}/{position.read}" if position.time else "" for position in after.values())


def _time(stamp: str) -> datetime:
    try:
        return datetime.fromisoformat(stamp[:26]).replace(tzinfo=UTC)
    except ValueError:
        return datetime.fromtimestamp(0, UTC)


def _stamp(at: datetime) -> str:
    """Return a time as the log writes it, in microseconds."""
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")
