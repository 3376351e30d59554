"""Logs: what a builder's sandboxes and installers wrote, joined over restarts and versions."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from builderd.domain.builders import Desired
from builderd.domain.ids import BuilderId, TenantId
from builderd.domain.logs import LogLine, LogStream
from builderd.domain.sandboxes import Sandbox
from builderd.ports.store import UnitOfWork
from builderd.services import builders
from builderd.services.application import Application

#: How often a follower looks for new lines, in seconds.
FOLLOW_INTERVAL = 0.2
#: Where lines are filtered: how many are looked at first, and how many times more if those were not enough.
FIRST_LOOK, LOOK_FURTHER = 500, 8
#: The last lines of a sandbox may be written down a little after its end.
LATE = timedelta(seconds=5)


@dataclass(frozen=True, slots=True)
class VersionedLine:
    """A line and the version that wrote it."""

    version: int
    line: LogLine


async def read(
    application: Application,
    tenant_id: TenantId,
    builder_id: str,
    *,
    tail: int = 200,
    since: datetime | None = None,
    stream: LogStream | None = None,
) -> Sequence[VersionedLine]:
    """The last ``tail`` lines that pass the filters, oldest first. Raises ``NotFound``."""
    wanted = Wanted(tail, since, stream)

    def find(uow: UnitOfWork) -> tuple[Sequence[Sandbox], Sequence[tuple[int, LogLine]]]:
        builder = builders.get(uow, tenant_id, builder_id)
        built = uow.build_logs.last(builder.id, tail, since) if wanted.build else ()
        return uow.sandboxes.list(builder.id) if wanted.run else (), built

    sandboxes, built = await application.store.read(find)
    run: list[VersionedLine] = []
    # One runs at a time: what an earlier one wrote is older than all that a later one wrote.
    for sandbox in reversed(sandboxes):
        if len(run) >= tail or wanted.is_older(sandbox):
            break
        written, _ = await _last_lines(application, sandbox, replace(wanted, count=tail - len(run)))
        run[:0] = [VersionedLine(sandbox.version, line) for line in written]
    lines = sorted([*(VersionedLine(version, line) for version, line in built), *run], key=_time)
    return lines[max(len(lines) - tail, 0) :]


@dataclass(frozen=True, slots=True)
class Wanted:
    """The last ``count`` lines (None: all) from ``since`` on, of one ``stream`` or of all."""

    count: int | None = None
    since: datetime | None = None
    stream: LogStream | None = None

    @property
    def build(self) -> bool:
        """Whether lines of installers may be among them."""
        return self.stream in (None, LogStream.BUILD)

    @property
    def run(self) -> bool:
        """Whether lines of apps may be among them."""
        return self.stream is not LogStream.BUILD

    def is_older(self, sandbox: Sandbox) -> bool:
        """Whether all that it wrote is from before."""
        end = sandbox.end.at if sandbox.end else None
        return self.since is not None and end is not None and end + LATE < self.since

    def passes(self, line: LogLine) -> bool:
        return (self.since is None or line.time >= self.since) and self.stream in (None, line.stream)


async def _last_lines(application: Application, sandbox: Sandbox, wanted: Wanted) -> tuple[list[LogLine], str]:
    """What is wanted of one sandbox's log, and the cursor after it: read from the end, as far back as it takes."""
    unfiltered = wanted.since is None and wanted.stream is None
    if unfiltered:
        lines, cursor = await application.engine.read_log(sandbox.id, tail=wanted.count)
        return list(lines), cursor
    count = FIRST_LOOK
    while True:
        lines, cursor = await application.engine.read_log(sandbox.id, tail=count)
        found = [line for line in lines if wanted.passes(line)]
        all_of_it = len(lines) < count or (wanted.since is not None and lines[0].time < wanted.since)
        if all_of_it or (wanted.count is not None and len(found) >= wanted.count):
            return found if wanted.count is None else found[max(len(found) - wanted.count, 0) :], cursor
        count *= LOOK_FURTHER


async def follow(
    application: Application,
    tenant_id: TenantId,
    builder_id: str,
    *,
    tail: int | None = 0,
    since: datetime | None = None,
    stream: LogStream | None = None,
) -> AsyncGenerator[VersionedLine]:
    """The last ``tail`` lines (None: all), then each line as it is written, until the builder is deleted.

    ``since`` and ``stream`` filter both. For a builder that is not there it ends at once.
    """
    follower = Follower(application, tenant_id, builder_id, Wanted(tail, since, stream))
    written = await follower.next_lines()
    for line in written if tail is None else written[max(len(written) - tail, 0) :]:
        yield line
    while not follower.ended:
        await asyncio.sleep(FOLLOW_INTERVAL)
        for line in await follower.next_lines():
            yield line


class Follower:
    """Remembers how far each log was read: a look costs what is new. ``wanted.count`` is of the first look alone."""

    def __init__(self, application: Application, tenant_id: TenantId, builder_id: str, wanted: Wanted) -> None:
        self._application = application
        self._tenant_id = tenant_id
        self._builder_id = builder_id
        self._wanted = wanted
        self._is_first = True
        self._cursors: dict[str, str] = {}
        self._over: set[str] = set()
        self._built = 0
        #: Whether the builder is gone.
        self.ended = False

    async def next_lines(self) -> Sequence[VersionedLine]:
        """What was written since the last call and is wanted, in order of time."""
        sandboxes, built = await self._application.store.read(self._find)
        lines = [VersionedLine(version, line) for version, line in built if self._wanted.passes(line)]
        for sandbox in sandboxes:
            if sandbox.id not in self._over:
                lines.extend(await self._read(sandbox))
        self._is_first = False
        return sorted(lines, key=_time)

    async def _read(self, sandbox: Sandbox) -> list[VersionedLine]:
        if self._is_first and self._wanted.is_older(sandbox):
            self._over.add(sandbox.id)
            return []
        written = await self._new_lines(sandbox)
        if sandbox.end is not None and not written:
            self._over.add(sandbox.id)
        return [VersionedLine(sandbox.version, line) for line in written if self._wanted.passes(line)]

    async def _new_lines(self, sandbox: Sandbox) -> Sequence[LogLine]:
        if self._is_first:
            lines, self._cursors[sandbox.id] = await _last_lines(self._application, sandbox, self._wanted)
            return lines
        cursor = self._cursors.get(sandbox.id, "")
        written, self._cursors[sandbox.id] = await self._application.engine.read_log(sandbox.id, cursor)
        return written

    def _find(self, uow: UnitOfWork) -> tuple[Sequence[Sandbox], Sequence[tuple[int, LogLine]]]:
        builder = uow.builders.get(BuilderId(self._builder_id))
        if builder is None or builder.tenant_id != self._tenant_id:
            self.ended = True
            return (), ()
        self.ended = builder.desired is Desired.DELETED
        return uow.sandboxes.list(builder.id), self._built_lines(uow, builder.id)

    def _built_lines(self, uow: UnitOfWork, builder_id: BuilderId) -> Sequence[tuple[int, LogLine]]:
        if self._is_first:
            self._built = uow.build_logs.last_id(builder_id)
            if self._wanted.count is not None:
                return uow.build_logs.last(builder_id, self._wanted.count, self._wanted.since)
            return uow.build_logs.list(builder_id)
        news = uow.build_logs.following(builder_id, self._built)
        if news:
            self._built = news[-1][0]
        return [(version, line) for _, version, line in news]


def _time(line: VersionedLine) -> datetime:
    return line.line.time
