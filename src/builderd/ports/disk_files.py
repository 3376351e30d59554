"""The files on a disk: read, written and deleted one by one, whether or not a sandbox runs on it.

Paths are relative to ``/app``, and have passed ``path_error``. No link is followed, wherever it leads, and nothing but
a plain file is opened. All methods raise ``NotFound`` where there is nothing, and ``ValidationFailed`` where a path
leads through a link, or to something of another kind.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from builderd.domain.files import Condition, FileEntry, FilePage
from builderd.domain.ids import DiskId


class OpenFile(Protocol):
    """A file as it was when it was opened; an app that writes into it meanwhile may be seen to do so."""

    @property
    def entry(self) -> FileEntry: ...

    def read(self, start: int, length: int) -> AsyncIterator[bytes]:
        """So many bytes from there, piece by piece; fewer when the file has become shorter."""


class DiskFiles(Protocol):
    async def list_files(self, disk: DiskId, path: str, skip: int, count: int) -> FilePage:
        """Entries of a folder, by their names; "" is ``/app`` itself. Takes little memory, however many there are."""

    def open_file(self, disk: DiskId, path: str) -> AbstractAsyncContextManager[OpenFile]:
        """A plain file, to be read for as long as the context lasts."""

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
        """Put a file there, and the folders that are missing. Whoever looks sees the old content or the new one.

        ``size`` is known beforehand, or None; ``executable`` None keeps the mode of what is replaced. Answers with the
        file, and whether it is new. Raises ``TooLarge`` when it does not fit on the disk, ``PreconditionFailed``, and
        what ``content`` raises; the old content stays then.
        """

    async def delete_file(self, disk: DiskId, path: str, condition: Condition, *, recursive: bool = False) -> None:
        """Delete a file, a link itself, or an empty folder; a full one in one step, when ``recursive``.

        What was in a large one goes in the background, and counts against the disk's limit until then.
        Raises ``PreconditionFailed``, and ``TooLarge`` where the disk is too full even for that.
        """

    def archive(self, disk: DiskId) -> AsyncGenerator[bytes]:
        """All of ``/app`` as a tar archive (POSIX 1003.1-2001, pax). Sockets are left out.

        Raises ``EngineUnavailable`` when it breaks off.
        """
