"""A bundle store in memory."""

from __future__ import annotations

import asyncio
import tarfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import BinaryIO

from builderd.code.model import (
    Alteration,
    ArchiveLimits,
    Bundle,
    BundleFile,
    altered,
    check_result,
    check_size,
    make_bundle,
)
from builderd.code.port import BundleSpace
from builderd.core.errors import ValidationFailed


class FakeBundles:
    def __init__(self) -> None:
        self.stored: dict[str, Bundle] = {}
        #: Bytes that all bundles together may take.
        self.most_bytes = 1 << 50
        self._lock = asyncio.Lock()
        self._pins: list[str] = []

    def exclusive(self) -> asyncio.Lock:
        return self._lock

    @contextmanager
    def pinned(self, bundle_hash: str) -> Iterator[None]:
        self._pins.append(bundle_hash)
        try:
            yield
        finally:
            self._pins.remove(bundle_hash)

    async def put(self, bundle: Bundle) -> None:
        self.stored[bundle.hash] = bundle

    async def unpack(self, archive: BinaryIO, limits: ArchiveLimits) -> Bundle:
        """Store the files of a tar, without any limit. Raises ``ValidationFailed`` if it is no tar."""
        try:
            with tarfile.open(fileobj=archive, mode="r:*") as tar:
                contents = [(member, tar.extractfile(member)) for member in tar if member.isfile()]
                files = [
                    BundleFile(member.name, content.read(), bool(member.mode & 0o100))
                    for member, content in contents
                    if content
                ]
        except tarfile.TarError:
            raise ValidationFailed(
                {"source": ["The archive is none: send a zip, a tar, a tar.gz or a tar.zst."]}
            ) from None
        bundle = make_bundle(_without_wrapper(files))
        await self.put(bundle)
        return bundle

    async def alter(self, bundle_hash: str, alteration: Alteration, limits: ArchiveLimits) -> Bundle:
        base = self.stored[bundle_hash]
        bundle = make_bundle(altered(base, alteration))
        check_size(bundle.files, limits)
        check_result(bundle.hash, alteration)
        await self.put(bundle)
        return bundle

    async def get(self, bundle_hash: str) -> Bundle:
        return self.stored[bundle_hash]

    async def hashes(self) -> Collection[str]:
        return frozenset(self.stored)

    async def space(self) -> BundleSpace:
        used = sum(one.packed_size for one in self.stored.values())
        return BundleSpace(used, self.most_bytes - used, "Its operator can raise the limit.")

    async def stored_bytes(self, bundles: Collection[str]) -> int:
        return sum(self.stored[one].packed_size for one in bundles if one in self.stored)

    async def delete(self, bundle_hash: str) -> None:
        if bundle_hash not in self._pins:
            self.stored.pop(bundle_hash, None)


def _without_wrapper(files: list[BundleFile]) -> list[BundleFile]:
    """Leave out one folder that has all the rest in it."""
    tops = {file.path.partition("/")[0] for file in files}
    if len(tops) != 1 or any("/" not in file.path for file in files):
        return files
    return [replace(file, path=file.path.partition("/")[2]) for file in files]
