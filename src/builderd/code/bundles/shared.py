"""Bundles in the database, with a local folder as their cache: for services that share a database and no folder."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Collection
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import BinaryIO
from weakref import WeakValueDictionary

from builderd.code.bundles.local import LocalBundles, StoredSizes
from builderd.code.model import Alteration, ArchiveLimits, Bundle
from builderd.code.port import BundleSpace
from builderd.code.store import CHUNK_BYTES
from builderd.database.unit_of_work import Store

log = logging.getLogger(__name__)

#: How the operator makes room.
REMEDY = "Its operator can raise limits.stored_code, if the database has the space."


class SharedBundles:
    """Implements ``ports.files.Bundles``. A bundle is stored once the database has it, whatever the folder has.

    ``unpack`` and ``alter`` store in the folder alone: what they return is ``put`` before a version refers to it.
    """

    def __init__(self, store: Store, local: LocalBundles, most_bytes: int = 1 << 50) -> None:
        """``most_bytes``: what all bundles in the database may take; it does not tell what is free on its machine."""
        self._store = store
        self._local = local
        self._most_bytes = most_bytes
        self._sizes = StoredSizes(lambda: store.read(lambda uow: uow.stored_bundles.sizes()))
        #: By hash: two copies of one bundle at a time would write the same rows.
        self._uploads: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def exclusive(self) -> AbstractAsyncContextManager[object]:
        return self._local.exclusive()

    def pinned(self, bundle_hash: str) -> AbstractContextManager[None]:
        return self._local.pinned(bundle_hash)

    async def put(self, bundle: Bundle) -> None:
        await self._local.put(bundle)
        async with self._uploads.setdefault(bundle.hash, asyncio.Lock()):
            await self._upload(bundle.hash)

    async def unpack(self, archive: BinaryIO, limits: ArchiveLimits) -> Bundle:
        return await self._local.unpack(archive, limits)

    async def alter(self, bundle_hash: str, alteration: Alteration, limits: ArchiveLimits) -> Bundle:
        await self.get(bundle_hash)
        return await self._local.alter(bundle_hash, alteration, limits)

    async def get(self, bundle_hash: str) -> Bundle:
        try:
            return await self._local.get(bundle_hash)
        except KeyError:
            return await self._download(bundle_hash)

    async def hashes(self) -> Collection[str]:
        """Return the hashes of all bundles in the database or in the folder: what nothing uses is swept in both."""
        stored = await self._store.read(lambda uow: uow.stored_bundles.hashes())
        return {*stored, *await self._local.hashes()}

    async def delete(self, bundle_hash: str) -> None:
        if bundle_hash not in self._local.pins:
            await self._store.write(lambda uow: uow.stored_bundles.delete(bundle_hash))
            self._sizes.drop(bundle_hash)
            await self._local.delete(bundle_hash)

    async def space(self) -> BundleSpace:
        used = await self._sizes.total()
        return BundleSpace(used, self._most_bytes - used, REMEDY)

    async def stored_bytes(self, bundles: Collection[str]) -> int:
        return await self._sizes.of(bundles)

    async def upload_used(self) -> None:
        """Copy bundles of the folder that versions refer to into the database, where that lacks them."""
        local = await self._local.hashes()
        used = await self._store.read(
            lambda uow: uow.versions.used_bundles(local).difference(uow.stored_bundles.sizes())
        )
        for bundle_hash in used:
            await self._upload(bundle_hash)
            log.info("bundle copied into the database bundle=%s", bundle_hash)

    async def download_used(self) -> None:
        """Copy bundles that versions refer to into the folder, where that lacks them."""
        local = frozenset(await self._local.hashes())
        stored = await self._store.read(lambda uow: uow.stored_bundles.sizes())
        lacking = sorted(stored.keys() - local)
        for bundle_hash in await self._store.read(lambda uow: uow.versions.used_bundles(lacking)):
            await self._download(bundle_hash)

    async def _upload(self, bundle_hash: str) -> None:
        """Copy a bundle of the folder into the database, chunk by chunk; a copy that was cut off starts again."""
        if await self._store.read(lambda uow: uow.stored_bundles.size(bundle_hash)) is not None:
            return
        with self._local.open_packed(bundle_hash) as packed:
            size = number = 0
            while content := await asyncio.to_thread(packed.read, CHUNK_BYTES):
                await self._put_chunk(bundle_hash, number, content)
                size, number = size + len(content), number + 1
        await self._store.write(lambda uow: uow.stored_bundles.complete(bundle_hash, size))
        self._sizes.put(bundle_hash, size)

    async def _put_chunk(self, bundle_hash: str, number: int, content: bytes) -> None:
        await self._store.write(lambda uow: uow.stored_bundles.put_chunk(bundle_hash, number, content))

    async def _download(self, bundle_hash: str) -> Bundle:
        """Copy a bundle of the database into the folder. Raises ``KeyError`` where it lacks or is damaged."""
        size = await self._store.read(lambda uow: uow.stored_bundles.size(bundle_hash))
        if size is None:
            raise KeyError(bundle_hash)
        try:
            return await self._local.put_packed(bundle_hash, self._chunks(bundle_hash, size))
        except KeyError:
            log.warning("bundle damaged in the database, deploy its version again bundle=%s", bundle_hash)
            # A deployment stores it again.
            await self._store.write(lambda uow: uow.stored_bundles.delete(bundle_hash))
            self._sizes.drop(bundle_hash)
            raise

    async def _chunks(self, bundle_hash: str, size: int) -> AsyncIterator[bytes]:
        for number in range(-(-size // CHUNK_BYTES)):
            yield await self._chunk(bundle_hash, number)

    async def _chunk(self, bundle_hash: str, number: int) -> bytes:
        return await self._store.read(lambda uow: uow.stored_bundles.chunk(bundle_hash, number)) or b""
