"""Files on disks, through the helper of the disk's member. Implements ``ports.disk_files.DiskFiles``."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime

from builderd.adapters.engines.incus.client import Json
from builderd.adapters.engines.incus.disks import FULL, Disks, HelperOf, volume_of
from builderd.adapters.engines.incus.helper import Task
from builderd.domain.files import Condition, FileEntry, FileKind, FilePage
from builderd.domain.ids import DiskId

_PIECE_BYTES = 1 << 18


class Files:
    def __init__(self, disks: Disks, helper: HelperOf) -> None:
        self._disks = disks
        self._helper = helper

    async def list(self, disk: DiskId, path: str, skip: int, count: int) -> FilePage:
        request = {"path": path, "skip": skip, "count": count}
        answer = await self._run("list_files", disk, request)
        return FilePage([_entry(entry) for entry in answer["entries"]], answer["total"])

    @asynccontextmanager
    async def open(self, disk: DiskId, path: str) -> AsyncIterator[OpenDiskFile]:
        async with self._task("open_file", disk, {"path": path}) as task:
            answer = await task.answer()
            yield OpenDiskFile(_entry(answer["entry"]), task)

    async def write(
        self,
        disk: DiskId,
        path: str,
        content: AsyncIterator[bytes],
        condition: Condition,
        size: int | None,
        executable: bool | None,
    ) -> tuple[FileEntry, bool]:
        limit = await self._disks.limit(disk)
        request = {"path": path, "size": size, "executable": executable, "limit": limit, **_condition(condition)}
        try:
            async with self._task("write_file", disk, request) as task:
                await task.answer()
                async for piece in content:
                    for start in range(0, len(piece), _PIECE_BYTES):
                        await task.send(piece[start : start + _PIECE_BYTES])
                await task.send_end()
                answer = await task.answer()
        except OSError as error:
            if error.errno not in FULL:
                raise
            raise await self._disks.too_full(disk) from error
        return _entry(answer["entry"]), answer["new"]

    async def delete(self, disk: DiskId, path: str, condition: Condition, recursive: bool) -> None:
        request = {"path": path, "recursive": recursive, **_condition(condition)}
        try:
            await self._run("delete_file", disk, request)
        except OSError as error:
            if error.errno not in FULL:
                raise
            raise await self._disks.too_full(disk) from error

    async def archive(self, disk: DiskId) -> AsyncGenerator[bytes]:
        async with self._task("archive", disk, {}) as task:
            await task.answer()
            async for piece in task.frames():
                yield piece

    @asynccontextmanager
    async def _task(self, name: str, disk: DiskId, request: Json) -> AsyncIterator[Task]:
        volume = volume_of(disk)
        helper = self._helper(await self._disks.member(disk))
        async with helper.task(name, {"volume": volume, **request}, [volume]) as task:
            yield task

    async def _run(self, name: str, disk: DiskId, request: Json) -> Json:
        async with self._task(name, disk, request) as task:
            await task.close_input()
            return await task.answer()


class OpenDiskFile:
    """Implements ``ports.disk_files.OpenFile``."""

    def __init__(self, entry: FileEntry, task: Task) -> None:
        self.entry = entry
        self._task = task

    async def read(self, start: int, length: int) -> AsyncIterator[bytes]:
        await self._task.send_line(f"{start} {length}")
        async for piece in self._task.frames():
            yield piece


def _entry(answer: Json) -> FileEntry:
    at = datetime.fromtimestamp(answer["modified_at"], UTC)
    return FileEntry(**{**answer, "kind": FileKind(answer["kind"]), "modified_at": at})


def _condition(condition: Condition) -> Json:
    return {
        name: None if tags is None else sorted(tags)
        for name, tags in (("matches", condition.matches), ("differs", condition.differs))
    }
