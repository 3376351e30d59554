"""Logs: output of a builder's sandboxes and installers, joined over restarts and versions.

They are read page by page, each when the previous one was consumed.
"""

from __future__ import annotations

import asyncio
import re
from array import array
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import NamedTuple, TypeVar

from builderd.application import Application
from builderd.builders import service as builders
from builderd.builders.model import Builder, Desired
from builderd.core.errors import EngineUnavailable
from builderd.core.ids import BuilderId, SandboxId, TenantId
from builderd.database.unit_of_work import UnitOfWork
from builderd.sandboxes.model import LogLine, LogMatch, LogStream, Sandbox, process_label
from builderd.tokens.limits import PagedReads

#: Interval at which a follower polls for new lines, in seconds, where its tenant has few followers.
FOLLOW_INTERVAL = 0.2
#: Lines of a log that are read at once.
PAGE = 500
#: Extra lines that are looked at to allow for filters, the factor by which pieces grow, and the lines of the largest.
LOOK_BACK, LOOK_FURTHER, MAX_PIECE = 500, 8, 10_000
#: Seconds after a sandbox's end in which its last lines may still be written.
LATE = timedelta(seconds=5)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
#: A position in a log as the id of an event: microseconds, and the number of the line among those of this time.
EVENT_ID = re.compile(r"(\d{1,18})-(\d{1,9})")

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class VersionedLine:
    """A line and the version that wrote it; ``process`` is ``worker.1`` for one of a further process."""

    version: int
    line: LogLine
    process: str = ""


@dataclass(frozen=True, slots=True)
class FollowedLine(VersionedLine):
    """A line and its number ``nth`` among those with the same time."""

    nth: int = 0

    @property
    def position(self) -> LogPosition:
        return LogPosition(self.line.time, self.nth)


class LogPosition(NamedTuple):
    """A position in a log, encoded in an event's id: the ``nth`` line with this time."""

    time: datetime
    nth: int

    def __str__(self) -> str:
        return f"{self.microseconds}-{self.nth}"

    @property
    def microseconds(self) -> int:
        """Return the time in microseconds since 1970."""
        return (self.time - EPOCH) // timedelta(microseconds=1)

    @classmethod
    def parse(cls, text: str) -> LogPosition | None:
        """Return the position that an event's id stands for, None for another text."""
        match = EVENT_ID.fullmatch(text)
        with suppress(OverflowError):
            return cls(EPOCH + timedelta(microseconds=int(match[1])), int(match[2])) if match else None
        return None


async def read(
    application: Application, tenant_id: TenantId, builder_id: str, wanted: LogFilter, pages: PagedReads | None = None
) -> AsyncGenerator[VersionedLine]:
    """Return the last lines that pass the filter and were written before the call, oldest first.

    Raises ``NotFound``.
    """
    await application.store.read(lambda uow: builders.get(uow, tenant_id, builder_id))
    wanted = replace(wanted, spare=LOOK_BACK if wanted.stream or wanted.search else 0)
    follower = Follower(application, tenant_id, builder_id, wanted, pages or PagedReads())
    found = await follower.begin()
    return _written(follower, found, found if wanted.tail is None else wanted.tail)


async def _written(follower: Follower, found: int, tail: int) -> AsyncGenerator[VersionedLine]:
    """Return the last lines among those that existed when reading began."""
    number = 0
    while number < found:
        await follower.poll()
        for line in follower.due():
            number += 1
            if number > found - tail:
                yield line
            if number == found:
                return
        if not follower.has_unread:
            return


@dataclass(frozen=True, slots=True)
class LogFilter:
    """Filter: the last ``tail`` lines (None: all) from ``since`` on, of one ``stream`` or of all, with ``search``.

    ``search`` ignores the case of letters. ``process`` is a further process, ``worker``, or one sandbox of it,
    ``worker.2``; "" is the app's own, None all.
    ``spare`` is the number of extra lines to read: lines of the same time count, and filters may drop lines.
    """

    tail: int | None = None
    since: datetime | None = None
    stream: LogStream | None = None
    search: str = ""
    process: str | None = None
    spare: int = 0

    @property
    def build(self) -> bool:
        """Return whether installer lines may pass the filter."""
        return self.stream in (None, LogStream.BUILD) and self.process is None

    @property
    def run(self) -> bool:
        """Return whether lines of sandboxes may pass the filter."""
        return self.stream is not LogStream.BUILD

    def reads(self, sandbox: Sandbox) -> bool:
        """Return whether lines of this sandbox may pass the filter: a release's are all of one stream."""
        if self.process is not None and self.process not in (sandbox.process, process_label(sandbox)):
            return False
        return self.stream is None or (self.stream is LogStream.RELEASE) is sandbox.release

    def is_older(self, sandbox: Sandbox) -> bool:
        """Return whether the sandbox ended so long before ``since`` that none of its lines can pass."""
        end = sandbox.end.at if sandbox.end else None
        return self.since is not None and end is not None and end + LATE < self.since

    @property
    def match(self) -> LogMatch:
        return LogMatch(self.since, self.stream, self.search)


async def follow(
    application: Application, tenant_id: TenantId, builder_id: str, wanted: LogFilter, pages: PagedReads | None = None
) -> AsyncGenerator[FollowedLine]:
    """Yield the last ``wanted.tail`` lines, then each new line until the builder is deleted; both pass the filter.

    Ends at once for a builder that does not exist. While the engine is unavailable, it waits: a service that has just
    started opens it, and an answer that has begun cannot become a failure.
    """
    pages = pages or PagedReads()

    async def once_readable(read: Callable[[], Awaitable[T]]) -> T:
        while True:
            with suppress(EngineUnavailable):
                return await read()
            await asyncio.sleep(FOLLOW_INTERVAL * pages.slowdown(tenant_id))

    follower = Follower(application, tenant_id, builder_id, replace(wanted, spare=LOOK_BACK), pages)
    with pages.following(tenant_id):
        found = await once_readable(follower.begin)
        too_many = 0 if wanted.tail is None else found - wanted.tail
        time, nth = None, 0
        while True:
            await once_readable(follower.poll)
            for line in follower.due():
                nth = nth + 1 if line.line.time == time else 1
                time = line.line.time
                if too_many > 0:
                    too_many -= 1
                else:
                    yield FollowedLine(line.version, line.line, line.process, nth)
            if not follower.has_unread:
                if follower.ended:
                    return
                await asyncio.sleep(FOLLOW_INTERVAL * pages.slowdown(tenant_id))


class Follower:
    """Reads all logs of a builder in parallel, each from its cursor.

    A poll reads only new lines, at most one page of each log. ``wanted.tail`` counts lines written before it began.
    """

    def __init__(
        self, application: Application, tenant_id: TenantId, builder_id: str, wanted: LogFilter, pages: PagedReads
    ) -> None:
        self._application = application
        self._tenant_id = tenant_id
        self._builder_id = BuilderId(builder_id)
        self._wanted = wanted
        self._place = pages.place(tenant_id)
        self._builds = _Log()
        self._built = 0
        self._match = wanted.match
        #: Sandboxes: where to begin, those being read, and those that are complete.
        self._starts: dict[SandboxId, _Log] = {}
        self._runs: dict[SandboxId, _Log] = {}
        self._over: set[SandboxId] = set()
        self._one_waits = False
        #: True once the builder is gone.
        self.ended = False

    @property
    def has_unread(self) -> bool:
        """Return whether more lines may exist than the last poll read."""
        return self._one_waits or any(log.more for log in self._logs())

    async def begin(self) -> int:
        """Find the cursors at which the last lines begin; return the number of lines after them if ``tail`` is set."""
        sandboxes, found = await self._read(self._start_positions)
        missing = self._wanted.tail
        for sandbox in reversed(sandboxes):
            if self._wanted.is_older(sandbox) or (missing == 0 and sandbox.end is not None):
                self._over.add(sandbox.id)
            elif missing is not None:
                self._starts[sandbox.id], passed = await self._look_back(sandbox, missing)
                found, missing = found + passed, max(missing - passed, 0)
        return found

    async def _look_back(self, sandbox: Sandbox, missing: int) -> tuple[_Log, int]:
        """Return a log with at least ``missing`` wanted lines ahead, if it has them, and their number."""
        # The lines of a release are all of one stream, which its log does not name.
        match = replace(self._match, stream=None) if sandbox.release else self._match
        before, found, count = "", 0, missing + self._wanted.spare
        while True:
            async with self._place:
                piece = await self._application.engine.logs.search_log(
                    sandbox.id, match, before, count=min(count, MAX_PIECE)
                )
            before, found = piece.begin, found + len(piece.lines)
            if found >= missing or not piece.more:
                return _Log(before), found
            count *= LOOK_FURTHER

    def _start_positions(self, uow: UnitOfWork) -> tuple[Sequence[Sandbox], int]:
        builder = self._find(uow)
        if builder is None:
            return (), 0
        # With a search, how many of them pass is known only once they were all looked at.
        count = None if self._wanted.search else self._wanted.tail
        self._built, found = uow.build_logs.before_last(builder.id, count, self._wanted.since)
        if self._wanted.search:
            found, after = 0, self._built
            while news := uow.build_logs.following(builder.id, after, PAGE):
                after = news[-1][0]
                found += sum(self._match.passes(line) for _, _, line in news)
        return self._sandboxes(uow, builder), found if self._wanted.build else 0

    async def poll(self) -> None:
        """Read the next page of each log whose lines were all consumed.

        A sandbox that began after unconsumed lines waits until they are consumed.
        """
        sandboxes = await self._read(self._new_sandboxes)
        self._runs = {one.id: self._runs[one.id] for one in sandboxes if one.id in self._runs}
        last, self._one_waits = self._builds.last, False
        for sandbox in sandboxes:
            if sandbox.id in self._over:
                continue
            if sandbox.id not in self._runs and last is not None and sandbox.created_at >= last:
                self._one_waits = True
                continue
            log = self._runs.setdefault(sandbox.id, self._starts.pop(sandbox.id, _Log()))
            await self._read_on(sandbox, log)
            last = min((time for time in (last, log.last) if time), default=None)

    def _new_sandboxes(self, uow: UnitOfWork) -> Sequence[Sandbox]:
        builder = self._find(uow)
        self._builds.more = builder is not None and self._wanted.build
        while self._builds.more and not self._builds.buffer:
            news = uow.build_logs.following(self._builder_id, self._built, PAGE)
            self._built = news[-1][0] if news else self._built
            self._buffer(self._builds, [VersionedLine(version, line) for _, version, line in news], len(news) == PAGE)
        return () if builder is None else self._sandboxes(uow, builder)

    async def _read(self, work: Callable[[UnitOfWork], T]) -> T:
        async with self._place:
            return await self._application.store.read(work)

    def _find(self, uow: UnitOfWork) -> Builder | None:
        builder = uow.builders.get(self._builder_id)
        mine = builder if builder and builder.tenant_id == self._tenant_id else None
        self.ended = mine is None or mine.desired is Desired.DELETED
        return mine

    def _sandboxes(self, uow: UnitOfWork, builder: Builder) -> Sequence[Sandbox]:
        listed = uow.sandboxes.list(builder.id) if self._wanted.run else ()
        return [one for one in listed if self._wanted.reads(one)]

    async def _read_on(self, sandbox: Sandbox, log: _Log) -> None:
        log.more = True
        while log.more and not log.buffer:
            # The start is found by time once; then the cursor has it.
            since = None if log.cursor else self._wanted.since
            async with self._place:
                page = await self._application.engine.logs.read_log(sandbox.id, log.cursor, since=since, limit=PAGE)
            log.cursor, lines = page.cursor, page.lines
            label = process_label(sandbox)
            if sandbox.release:  # callers see them as a stream of their own
                lines = [replace(line, stream=LogStream.RELEASE) for line in lines]
            self._buffer(log, [VersionedLine(sandbox.version, line, label) for line in lines], page.more)
        if sandbox.end is not None and not log.buffer:
            self._over.add(sandbox.id)
            del self._runs[sandbox.id]

    def _buffer(self, log: _Log, lines: Iterable[VersionedLine], more: bool) -> None:
        wanted = (one for one in lines if self._match.passes(one.line))
        log.buffer.extend(sorted(wanted, key=lambda one: one.line.time))
        log.more = more

    def due(self) -> Iterator[VersionedLine]:
        """Yield the lines read so far, ordered by time, until another page of a log is needed to know the next one."""
        logs = self._logs()
        while unread := [log for log in logs if log.buffer]:
            log = min(unread, key=lambda log: log.buffer[0].line.time)
            yield log.buffer.popleft()
            if log.more and not log.buffer:
                return

    def _logs(self) -> Sequence[_Log]:
        return [self._builds, *self._runs.values()]


class _Log:
    """A log that is being read: unconsumed lines, and whether more may follow the cursor."""

    def __init__(self, cursor: str = "") -> None:
        self.cursor = cursor
        self.buffer: deque[VersionedLine] = deque()
        self.more = False

    @property
    def last(self) -> datetime | None:
        """The time of the last unconsumed line."""
        return self.buffer[-1].line.time if self.buffer else None


@dataclass(frozen=True, slots=True)
class Bucket:
    """Lines from ``time`` on, and those of them that the app wrote to its standard error."""

    time: datetime
    lines: int
    errors: int


@dataclass(frozen=True, slots=True)
class Density:
    """``versions``: (version, time of its first line), in order; ``step`` is the length of a bucket."""

    lines: int
    step: timedelta
    buckets: Sequence[Bucket]
    versions: Sequence[tuple[int, datetime]]


async def density(lines: AsyncGenerator[VersionedLine], count: int) -> Density:
    """Count the lines, which come in order of time, in ``count`` buckets of equal length from the first to the last."""
    times, is_error, versions = array("d"), bytearray(), dict[int, datetime]()
    async with aclosing(lines):
        async for one in lines:
            times.append(one.line.time.timestamp())
            is_error.append(one.line.stream is LogStream.STDERR)
            versions.setdefault(one.version, one.line.time)
    if not times:
        return Density(0, timedelta(0), (), ())
    begin, width = min(times), max((max(times) - min(times)) / count, 1e-6)
    all_lines, errors = [0] * count, [0] * count
    for time, error in zip(times, is_error, strict=True):
        index = min(int((time - begin) / width), count - 1)
        all_lines[index] += 1
        errors[index] += error
    buckets = [
        Bucket(datetime.fromtimestamp(begin + index * width, UTC), all_lines[index], errors[index])
        for index in range(count)
    ]
    return Density(len(times), timedelta(seconds=width), buckets, list(versions.items()))
