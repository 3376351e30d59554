"""Logs: what a builder's sandboxes and installers wrote, joined over restarts and versions."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from datetime import datetime

from builderd.domain.builders import Desired
from builderd.domain.ids import BuilderId, TenantId
from builderd.domain.logs import LogLine, LogStream
from builderd.domain.sandboxes import Sandbox
from builderd.ports.store import UnitOfWork
from builderd.services import builders
from builderd.services.application import Application

#: How often a follower looks for new lines, in seconds.
FOLLOW_INTERVAL = 0.2


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

    def find(uow: UnitOfWork) -> tuple[Sequence[Sandbox], Sequence[tuple[int, LogLine]]]:
        builder = builders.get(uow, tenant_id, builder_id)
        return uow.sandboxes.list(builder.id), uow.build_logs.list(builder.id)

    sandboxes, built = await application.store.read(find)
    build = [VersionedLine(version, line) for version, line in built if _passes(line, since, stream)]
    run: list[VersionedLine] = []
    # One runs at a time: what an earlier one wrote is older than all that a later one wrote.
    for sandbox in reversed(sandboxes if stream is not LogStream.BUILD else ()):
        if len(run) >= tail:
            break
        filtered = since is not None or stream is not None
        written, _ = await application.engine.read_log(sandbox.id, tail=None if filtered else tail - len(run))
        run[:0] = [VersionedLine(sandbox.version, line) for line in written if _passes(line, since, stream)]
    lines = sorted([*build, *run], key=_time)
    return lines[max(len(lines) - tail, 0) :]


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
    filtered = since is not None or stream is not None
    follower = Follower(application, tenant_id, builder_id, tail=None if filtered else tail)
    written = [line for line in await follower.next_lines() if _passes(line.line, since, stream)]
    for line in written if tail is None else written[max(len(written) - tail, 0) :]:
        yield line
    while not await follower.ended():
        await asyncio.sleep(FOLLOW_INTERVAL)
        for line in await follower.next_lines():
            if _passes(line.line, since, stream):
                yield line


class Follower:
    """Remembers how far each sandbox's log was read. With ``tail``, only so many lines of each are read at first."""

    def __init__(self, application: Application, tenant_id: TenantId, builder_id: str, tail: int | None = None) -> None:
        self._application = application
        self._tenant_id = tenant_id
        self._builder_id = builder_id
        self._tail = tail
        self._cursors: dict[str, str] = {}
        self._ended: set[str] = set()
        self._built = 0

    async def next_lines(self) -> Sequence[VersionedLine]:
        """What was written since the last call, in order of time."""
        sandboxes, built = await self._application.store.read(self._find)
        lines = [VersionedLine(version, line) for version, line in built[self._built :]]
        self._built = max(self._built, len(built))
        for sandbox in sandboxes:
            if sandbox.id in self._ended:
                continue
            lines.extend(await self._read(sandbox))
        self._tail = None
        return sorted(lines, key=_time)

    async def ended(self) -> bool:
        """Whether the builder is gone."""

        def gone(uow: UnitOfWork) -> bool:
            builder = uow.builders.get(BuilderId(self._builder_id))
            return builder is None or builder.tenant_id != self._tenant_id or builder.desired is Desired.DELETED

        return await self._application.store.read(gone)

    async def _read(self, sandbox: Sandbox) -> list[VersionedLine]:
        cursor = self._cursors.get(sandbox.id, "")
        written, cursor = await self._application.engine.read_log(sandbox.id, cursor, self._tail)
        self._cursors[sandbox.id] = cursor
        if sandbox.end is not None and not written:
            self._ended.add(sandbox.id)
        return [VersionedLine(sandbox.version, line) for line in written]

    def _find(self, uow: UnitOfWork) -> tuple[Sequence[Sandbox], Sequence[tuple[int, LogLine]]]:
        builder = uow.builders.get(BuilderId(self._builder_id))
        if builder is None or builder.tenant_id != self._tenant_id:
            return (), ()
        return uow.sandboxes.list(builder.id), uow.build_logs.list(builder.id)


def _passes(line: LogLine, since: datetime | None, stream: LogStream | None) -> bool:
    return (since is None or line.time >= since) and (stream is None or line.stream is stream)


def _time(line: VersionedLine) -> datetime:
    return line.line.time
