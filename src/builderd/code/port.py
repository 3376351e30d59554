"""The stores of files: bundles under their hash, uploads until they are deployed, and files on a disk."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Collection
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from dataclasses import dataclass
from typing import BinaryIO, Protocol

from builderd.code.model import Alteration, ArchiveLimits, Bundle
from builderd.core.ids import DiskId, UploadId
from builderd.files.model import Condition, FileEntry, FilePage


@dataclass(frozen=True, slots=True)
class BundleSpace:
    """Bytes that stored bundles take, and that are free for more. ``remedy``: how the operator gets more of it."""

    used: int
    free: int
    remedy: str

    @property
    def is_nearly_full(self) -> bool:
        """True when a fifth of the space or less is left."""
        return self.used >= 0.8 * (self.used + max(self.free, 0))


class Bundles(Protocol):
    def exclusive(self) -> AbstractAsyncContextManager[object]:
        """Hold the store for this caller: while a bundle is referred to, or an unused one is removed."""

    def pinned(self, bundle_hash: str) -> AbstractContextManager[None]:
        """Keep ``delete`` from removing the bundle in the block: while it is stored, until it is referred to."""

    async def put(self, bundle: Bundle) -> None:
        """Store the bundle whole or not at all. Idempotent."""

    async def unpack(self, archive: BinaryIO, limits: ArchiveLimits) -> Bundle:
        """Store the contents of an archive (zip, tar, tar.gz or tar.zst), whole or not at all.

        ``archive`` is a file with a descriptor of its own. Nothing in it is trusted. Raises ``ValidationFailed`` or
        ``TooLarge`` with the name of the entry at fault, and ``NoCapacity`` when there is no room for it.
        """

    async def alter(self, bundle_hash: str, alteration: Alteration, limits: ArchiveLimits) -> Bundle:
        """Store what an alteration makes of a stored bundle, whole or not at all.

        Added paths keep the rules of an archive's names. Raises ``KeyError`` when no bundle has this hash,
        ``ValidationFailed`` for an alteration that does not fit it or has another ``result``, ``TooLarge`` for more
        files, bytes, or bytes of names than the limits.
        """

    async def get(self, bundle_hash: str) -> Bundle:
        """Return the bundle; the contents of a large one are read on demand.

        Raises ``KeyError`` when no bundle has this hash.
        """

    async def hashes(self) -> Collection[str]:
        """Return the hashes of all stored bundles."""

    async def space(self) -> BundleSpace:
        """Return the space of all bundles."""

    async def stored_bytes(self, bundles: Collection[str]) -> int:
        """Return the bytes of these bundles together; those that are not stored count nothing."""

    async def delete(self, bundle_hash: str) -> None:
        """Delete the bundle, unless it is pinned. Idempotent."""


class Uploads(Protocol):
    async def write(self, upload: UploadId, start: int, content: AsyncIterator[bytes], limit: int) -> int:
        """Write from byte ``start``, at most the next missing one; return how many bytes are stored then.

        Bytes that arrived are kept when the rest breaks off. Raises ``TooLarge`` past ``limit`` bytes in all,
        ``Conflict`` during another write or where bytes before ``start`` are missing, ``NoCapacity``, and the errors
        of ``content``.
        """

    async def size(self, upload: UploadId) -> int:
        """Return how many bytes are stored; 0 when there is nothing."""

    async def sha256(self, upload: UploadId) -> str:
        """Return the SHA-256 of all stored bytes, as 64 hex characters. Raises ``KeyError`` when there is nothing."""

    async def open(self, upload: UploadId) -> BinaryIO:
        """Open the stored bytes for reading. Raises ``KeyError`` when there is nothing."""

    async def delete(self, upload: UploadId) -> None:
        """Delete the upload. Idempotent. Raises ``Conflict`` during a write."""

    async def ids(self) -> Collection[UploadId]:
        """Return the ids of all stored uploads."""


class OpenFile(Protocol):
    """Open file, as it was when opened; concurrent writes of an app may show."""

    @property
    def entry(self) -> FileEntry: ...

    def read(self, start: int, length: int) -> AsyncIterator[bytes]:
        """Yield ``length`` bytes from ``start`` in pieces; fewer when the file has become shorter."""


class DiskFiles(Protocol):
    """Files on a disk: read, written and deleted one by one, also while a sandbox runs on it.

    Paths are relative to ``/app``, and have passed ``path_error``. No link is followed, and only plain files are
    opened. All methods raise ``NotFound`` when there is nothing at the path, ``ValidationFailed`` when the path leads
    through a link or to something of another kind.
    """

    async def list_files(self, disk: DiskId, path: str, skip: int, count: int) -> FilePage:
        """Return a page of a folder's entries by name; "" is ``/app`` itself. Memory does not grow with the folder."""

    def open_file(self, disk: DiskId, path: str) -> AbstractAsyncContextManager[OpenFile]:
        """Open a plain file for as long as the context lasts."""

    async def write_file(
        self,
        disk: DiskId,
        path: str,
        content: AsyncIterator[bytes],
        *,
        condition: Condition,
        size: int | None = None,
        executable: bool | None = None,
    ) -> tuple[FileEntry, bool]:
        """Write a file and its missing folders. Readers see the old content or the new one, never a mixture.

        ``size`` is known beforehand, or None; ``executable`` None keeps the mode of a replaced file. Return the
        entry, and True if it is new. Raises ``TooLarge`` when it does not fit on the disk, ``PreconditionFailed``, and
        what ``content`` raises; then the old content stays.
        """

    async def delete_file(self, disk: DiskId, path: str, condition: Condition, *, recursive: bool = False) -> None:
        """Delete a file, a link itself, or an empty folder; a full one in one step, when ``recursive``.

        A large folder's content is deleted in the background and counts against the disk's limit until then.
        Raises ``PreconditionFailed``, and ``TooLarge`` where the disk is too full even for that.
        """

    def archive(self, disk: DiskId) -> AsyncGenerator[bytes]:
        """Yield all of ``/app`` as a tar archive (POSIX 1003.1-2001, pax). Sockets are left out.

        Raises ``EngineUnavailable`` when it breaks off.
        """
