"""The files of a builder, as they are on its disk now, whether or not it runs."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager

import zstandard

from builderd.domain.builders import Builder
from builderd.domain.bundles import path_error
from builderd.domain.errors import InvalidState, RateLimited
from builderd.domain.files import Condition, FileEntry, FilePage, bad_path
from builderd.domain.ids import BuilderId, DiskId, TenantId
from builderd.ports.disk_files import OpenFile
from builderd.ports.store import UnitOfWork
from builderd.services import activity, builders, outcomes
from builderd.services.application import Application
from builderd.services.candidates import TakesOver

#: Fast, and three quarters of what the highest level would gain.
COMPRESSION_LEVEL = 3
#: Archives that one tenant is sent at the same time.
MAX_ARCHIVES = 2
#: Files that one tenant reads at the same time.
MAX_READS = 100


async def list_page(
    application: Application, tenant_id: TenantId, builder_id: str, path: str, skip: int, count: int
) -> FilePage:
    """Entries of a folder; "" is ``/app``. Raises ``NotFound`` or ``ValidationFailed``, as all of these do."""
    async with _disk(application, tenant_id, builder_id) as disk:
        return await application.engine.list_files(disk, _checked(path) if path else "", skip, count)


@asynccontextmanager
async def opened(application: Application, tenant_id: TenantId, builder_id: str, path: str) -> AsyncIterator[OpenFile]:
    """A file, to be read as long as the context lasts. Raises ``RateLimited`` when the tenant reads too many."""
    async with (
        _count_open(application.reads, tenant_id, MAX_READS, "files"),
        _disk(application, tenant_id, builder_id) as disk,
        application.engine.open_file(disk, _checked(path)) as file,
    ):
        yield file


async def write(
    application: Application,
    tenant_id: TenantId,
    builder_id: str,
    path: str,
    content: AsyncIterator[bytes],
    *,
    condition: Condition,
    size: int | None,
    executable: bool | None,
) -> tuple[FileEntry, bool]:
    """Put a file there; with it, whether it is new. Raises ``TooLarge`` or ``PreconditionFailed`` too."""
    async with _open_disk(application, tenant_id, builder_id) as disk:
        return await application.engine.write_file(
            disk, _checked(path), content, condition=condition, size=size, executable=executable
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
        await application.engine.delete_file(disk, _checked(path), condition, recursive=recursive)


@asynccontextmanager
async def archive(
    application: Application, tenant_id: TenantId, builder_id: str
) -> AsyncIterator[AsyncGenerator[bytes]]:
    """All of ``/app`` as ``tar.zst`` (RFC 8878), made while it is taken.

    Raises ``NotFound``, and ``RateLimited`` where the tenant takes as many already as leaves some for others.
    """
    builder, disk = await _read(application, tenant_id, builder_id)
    async with _count_open(application.archives, tenant_id, MAX_ARCHIVES, "archives"):
        packed = _compressed(application.engine.archive(disk), activity.track_use(application, builder))
        async with aclosing(packed):
            yield packed


@asynccontextmanager
async def _count_open(sent: Counter[TenantId], tenant_id: TenantId, limit: int, what: str) -> AsyncIterator[None]:
    """Count one of those that a tenant is sent. Raises ``RateLimited`` for one too many."""
    if sent[tenant_id] >= limit:
        words = f"{limit} {what} of yours are being sent already: ask again when one of them is complete."
        raise RateLimited(words, retry_after=10)
    sent[tenant_id] += 1
    try:
        yield
    finally:
        sent[tenant_id] -= 1


async def _compressed(packed: AsyncGenerator[bytes], use: AbstractAsyncContextManager[None]) -> AsyncGenerator[bytes]:
    compressor = zstandard.ZstdCompressor(COMPRESSION_LEVEL).compressobj()
    async with use, aclosing(packed):
        async for piece in packed:
            if made := await asyncio.to_thread(compressor.compress, piece):
                yield made
        yield compressor.flush()


@asynccontextmanager
async def _disk(application: Application, tenant_id: TenantId, builder_id: str) -> AsyncIterator[DiskId]:
    """The builder's disk; for as long as the context lasts, the builder is in use."""
    builder, disk = await _read(application, tenant_id, builder_id)
    async with activity.track_use(application, builder):
        yield disk


async def _read(application: Application, tenant_id: TenantId, builder_id: str) -> tuple[Builder, DiskId]:
    """The disk that the builder's sandbox has, or had when it ran last."""
    builder = await application.store.read(lambda uow: builders.get(uow, tenant_id, builder_id))
    _, disk = builder.to_run
    if await application.engine.disk(disk) is None:
        raise InvalidState(f"The builder is {builder.status} and has no files yet: wait until it runs.")
    return builder, disk


@asynccontextmanager
async def _open_disk(application: Application, tenant_id: TenantId, builder_id: str) -> AsyncIterator[DiskId]:
    """The disk, to be changed: what is done to it lasts, or ``InvalidState`` is raised.

    A version that takes over does so on a copy of the disk, and the one or the other is thrown away. So a change waits
    while that goes on, and one that it came in between is not promised.
    """

    def load(uow: UnitOfWork) -> DiskId:
        builder = builders.get(uow, tenant_id, builder_id)
        if builder.handover is not None:
            raise TakesOver("A version takes over at this moment: try again.", retry_after=1)
        return builder.disk

    async def free() -> DiskId:
        return await application.store.read(load)

    disk = await outcomes.after_take_over(application, BuilderId(builder_id), free)
    async with _disk(application, tenant_id, builder_id):
        yield disk
    if await outcomes.after_take_over(application, BuilderId(builder_id), free) != disk:
        raise InvalidState("Another version took over meanwhile, perhaps without this change: make it again.")


def _checked(path: str) -> str:
    if error := path_error(path):
        raise bad_path(error)
    return path
