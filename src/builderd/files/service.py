"""Files on a builder's disk, whether or not it runs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from dataclasses import dataclass, replace

import zstandard

from builderd.application import Application
from builderd.builders import outcomes
from builderd.builders import service as builders
from builderd.builders.candidates import TakesOver
from builderd.builders.model import Builder, Status
from builderd.code.model import path_error
from builderd.code.port import OpenFile
from builderd.core.errors import InvalidState
from builderd.core.ids import BuilderId, DiskId, TenantId
from builderd.database.unit_of_work import UnitOfWork
from builderd.files.model import Condition, FileEntry, FilePage, bad_path
from builderd.idle import service as wake

#: zstd level: fast, with three quarters of the highest level's gain.
COMPRESSION_LEVEL = 3


@dataclass(frozen=True, slots=True)
class NewContent:
    """Content of a file that is to be written. ``size`` in bytes, None: unknown. ``executable`` None: as it was."""

    pieces: AsyncIterator[bytes]
    size: int | None = None
    executable: bool | None = None


async def list_page(
    application: Application, tenant_id: TenantId, builder_id: str, path: str, skip: int, count: int
) -> FilePage:
    """Return entries of a folder; "" is ``/app``. Raises ``NotFound`` or ``ValidationFailed``, as all of these do."""
    async with _disk(application, tenant_id, builder_id) as disk:
        return await application.engine.files.list_files(disk, _checked(path) if path else "", skip, count)


@asynccontextmanager
async def opened(application: Application, tenant_id: TenantId, builder_id: str, path: str) -> AsyncIterator[OpenFile]:
    """Return a file that can be read while the context lasts."""
    async with (
        _disk(application, tenant_id, builder_id) as disk,
        application.engine.files.open_file(disk, _checked(path)) as file,
    ):
        yield file


async def write(
    application: Application,
    tenant_id: TenantId,
    builder_id: str,
    path: str,
    new: NewContent,
    condition: Condition,
) -> tuple[FileEntry, bool]:
    """Write a file; return its entry, and True if it is new. Raises ``TooLarge`` or ``PreconditionFailed`` too."""
    async with _open_disk(application, tenant_id, builder_id) as disk:
        return await application.engine.files.write_file(
            disk, _checked(path), new.pieces, condition=condition, size=new.size, executable=new.executable
        )


async def delete(
    application: Application,
    tenant_id: TenantId,
    builder_id: str,
    path: str,
    *,
    condition: Condition,
    recursive: bool,
) -> None:
    """Delete a file or folder. Raises ``PreconditionFailed`` or ``TooLarge`` too."""
    async with _open_disk(application, tenant_id, builder_id) as disk:
        await application.engine.files.delete_file(disk, _checked(path), condition, recursive=recursive)


@asynccontextmanager
async def archive(
    application: Application, tenant_id: TenantId, builder_id: str
) -> AsyncIterator[AsyncGenerator[bytes]]:
    """Return all of ``/app`` as ``tar.zst`` (RFC 8878), packed while it is read. Raises ``NotFound``."""
    builder, disk = await _read(application, tenant_id, builder_id)
    packed = _compressed(application.engine.files.archive(disk), wake.track_use(application, builder))
    async with aclosing(packed):
        yield packed


async def _compressed(packed: AsyncGenerator[bytes], use: AbstractAsyncContextManager[None]) -> AsyncGenerator[bytes]:
    compressor = zstandard.ZstdCompressor(COMPRESSION_LEVEL).compressobj()
    async with use, aclosing(packed):
        async for piece in packed:
            if made := await asyncio.to_thread(compressor.compress, piece):
                yield made
        yield compressor.flush()


@asynccontextmanager
async def _disk(application: Application, tenant_id: TenantId, builder_id: str) -> AsyncIterator[DiskId]:
    """Return the builder's disk, and record a use while the context lasts."""
    builder, disk = await _read(application, tenant_id, builder_id)
    async with wake.track_use(application, builder):
        yield disk


async def _read(application: Application, tenant_id: TenantId, builder_id: str) -> tuple[Builder, DiskId]:
    """Return the builder, and the disk that its sandbox has or had when it last ran.

    A first disk that is not recorded yet may go with a refusal, and whatever was written to it.
    """
    builder = await application.store.read(lambda uow: builders.get(uow, tenant_id, builder_id))
    _, disk = builder.to_run
    is_recorded = builder.disk_is_made or disk != builder.disk
    if not is_recorded or await application.engine.disks.disk(disk) is None:
        raise InvalidState(f"The builder is {builder.status} and has no files yet: wait until it runs.")
    return builder, disk


async def _keep_disk(application: Application, tenant_id: TenantId, builder_id: str) -> None:
    """Record for a failed builder, whose disk would be given back, that it holds what a caller has put there."""
    seen = await application.store.read(lambda uow: builders.get(uow, tenant_id, builder_id))
    if seen.status is not Status.FAILED or seen.disk_has_data or not seen.disk_is_made:
        return

    def record(uow: UnitOfWork) -> None:
        builder = uow.builders.get(seen.id, lock=True)
        if builder is not None:
            uow.builders.save(replace(builder, disk_has_data=True))

    await application.store.write(record)


@asynccontextmanager
async def _open_disk(application: Application, tenant_id: TenantId, builder_id: str) -> AsyncIterator[DiskId]:
    """Return the disk for a change that must not get lost. Raises ``InvalidState`` if it could.

    A take-over uses a copy of the disk and discards one of both. A change therefore waits while a take-over is in
    progress, and fails if one began in between.
    """

    def load(uow: UnitOfWork) -> DiskId:
        builder = builders.get(uow, tenant_id, builder_id)
        if builder.handover is not None:
            raise TakesOver("A version takes over at this moment: try again.", retry_after=1)
        return builder.disk

    async def free() -> DiskId:
        return await application.store.read(load)

    disk = await outcomes.after_take_over(application, BuilderId(builder_id), free)
    await _keep_disk(application, tenant_id, builder_id)
    async with _disk(application, tenant_id, builder_id):
        yield disk
    if await outcomes.after_take_over(application, BuilderId(builder_id), free) != disk:
        raise InvalidState("Another version took over meanwhile, perhaps without this change: make it again.")


def _checked(path: str) -> str:
    if error := path_error(path):
        raise bad_path(error)
    return path
