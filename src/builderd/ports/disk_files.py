"""Files on a disk: read, written and deleted one by one, also while a sandbox runs on it.

Paths are relative to ``/app``, and have passed ``path_error``. No link is followed, and only plain files are
opened. All methods raise ``NotFound`` when there is nothing at the path, ``ValidationFailed`` when the path leads
through a link or to something of another kind.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from builderd.domain.files import Condition, FileEntry, FilePage
from builderd.domain.ids import DiskId


class OpenFile(Protocol):
    """Open file, as it was when opened; concurrent writes of an app may show."""

    @property
    def entry(self) -> FileEntry: ...

    def read(self, start: int, length: int) -> AsyncIterator[bytes]:
        """Yield ``length`` bytes from ``start`` in pieces; fewer when the file has become shorter."""


class DiskFiles(Protocol):
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
