"""Files on disks, for callers of the engine. Implements ``ports.files.DiskFiles``.

What is being written is a nameless file beside ``app``: it counts against the disk's limit, its app cannot see it, and
a crash leaves nothing of it.
"""

from __future__ import annotations

import asyncio
import errno
import os
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from builderd.core.errors import BuilderdError, EngineUnavailable
from builderd.core.ids import DiskId
from builderd.engine.oci.storage import tree
from builderd.engine.oci.storage.disks import APP_OWNER, Disks
from builderd.engine.oci.storage.subvolumes import folder
from builderd.files.model import Condition, FileEntry, FilePage
from builderd.sandboxing.bubblewrap import limited, unprivileged
from builderd.sandboxing.privileges import Limits

P = ParamSpec("P")
T = TypeVar("T")

PIECE_BYTES = 1 << 20
#: Piece size of uploads, smaller: the pieces of many uploads stay in memory while they wait for their turn.
WRITE_BYTES = 1 << 18
#: Piece size of downloads, smaller: unread pieces stay in memory, and there may be many downloads.
READ_BYTES = 1 << 17
#: Threads for listings: a folder of a million files delays no other work.
THREADS = 16
#: Archives made at the same time.
ARCHIVES = 4
#: Archiver: may read any file, and nothing more.
ARCHIVER = (
    *limited(Limits(address_space=1 << 30, descriptors=4096)),
    *unprivileged(capability="dac_read_search"),
    *tree.TAR,
)


class Files:
    def __init__(self, disks: Disks) -> None:
        self._disks = disks
        self._threads = ThreadPoolExecutor(THREADS, "files")
        self._archives = asyncio.Semaphore(ARCHIVES)
        #: Locked from the check of a condition until its change is made.
        self._changing = threading.Lock()

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run in a thread; return only when it is done, also when cancelled: descriptors are in use until then."""
        running = asyncio.get_running_loop().run_in_executor(self._threads, lambda: work(*args, **kwargs))
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            await asyncio.wait({running})
            raise

    async def list_files(self, disk: DiskId, path: str, skip: int, count: int) -> FilePage:
        def work() -> FilePage:
            with self._root(disk) as root:
                return tree.list_folder(root, path, skip, count)

        return await self._run(work)

    @contextmanager
    def _root(self, disk: DiskId) -> Iterator[int]:
        with folder(self._disks.app(disk)) as root:
            yield root

    @asynccontextmanager
    async def open_file(self, disk: DiskId, path: str) -> AsyncIterator[DiskFileReader]:
        def work() -> int:
            with self._root(disk) as root:
                return tree.open_file(root, path)

        descriptor = await self._run(work)
        try:
            entry = tree.make_entry(path.rpartition("/")[2], os.fstat(descriptor))
            yield DiskFileReader(entry, descriptor, self._run)
        finally:
            os.close(descriptor)

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
        await self._run(self._check, disk, path, condition)
        if size is not None and size > self._disks.limit(disk):
            raise self._disks.too_large(disk)
        full = partial(self._full_disk_as, self._disks.too_full, disk)
        with full(), folder(self._disks.incoming(disk)) as staging:
            flags = os.O_WRONLY | os.O_TMPFILE | os.O_CLOEXEC
            # Judged while the file is open: closing it gives back the space that it took.
            with tree.closing(os.open(".", flags, 0o600, dir_fd=staging)) as staged, full():
                async for piece in chunked(content, WRITE_BYTES):
                    await self._run(tree.write_all, staged, piece)
                return await self._run(self._put, disk, path, condition, staged, staging, executable)

    def _check(self, disk: DiskId, path: str, condition: Condition) -> None:
        """Check what can be checked before the content is read."""
        with self._root(disk) as root:
            tree.check(root, path, condition)

    def _put(
        self, disk: DiskId, path: str, condition: Condition, staged: int, staging: int, executable: bool | None
    ) -> tuple[FileEntry, bool]:
        os.fsync(staged)
        with self._root(disk) as root, self._changing:
            present = tree.check(root, path, condition)
            os.fchown(staged, APP_OWNER, APP_OWNER)
            os.fchmod(staged, tree.mode_of(present, executable))
            return tree.put(root, path, staged, staging, APP_OWNER), present is None

    async def delete_file(self, disk: DiskId, path: str, condition: Condition, *, recursive: bool = False) -> None:
        def work() -> None:
            with self._full_disk_as(self._disks.delete_needs_space, disk), self._root(disk) as root:
                with self._changing:
                    moved = tree.delete(root, path, condition, partial(self._trash, disk), recursive=recursive)
                if moved:
                    self._disks.empty_trash(disk)

        await self._run(work)

    @contextmanager
    def _trash(self, disk: DiskId) -> Iterator[int]:
        with folder(self._disks.trash(disk)) as trash:
            yield trash

    @contextmanager
    def _full_disk_as(self, error_of: Callable[[DiskId], BuilderdError], disk: DiskId) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno not in (errno.EDQUOT, errno.ENOSPC, errno.EFBIG):
                raise
            raise error_of(disk) from error

    async def archive(self, disk: DiskId) -> AsyncGenerator[bytes]:
        app = self._disks.app(disk)
        async with self._archives, _archiver(app) as (output, ended):
            while piece := await output.read(PIECE_BYTES):
                yield piece
            await ended()


class DiskFileReader:
    """Implements ``ports.files.OpenFile``."""

    def __init__(self, entry: FileEntry, descriptor: int, run: Callable[..., Coroutine[Any, Any, bytes]]) -> None:
        self.entry = entry
        self._descriptor = descriptor
        self._run = run

    async def read(self, start: int, length: int) -> AsyncIterator[bytes]:
        end = start + length
        while start < end:
            piece = await self._run(os.pread, self._descriptor, min(READ_BYTES, end - start), start)
            if not piece:
                return
            start += len(piece)
            yield piece


async def chunked(content: AsyncIterator[bytes], size: int) -> AsyncIterator[bytes]:
    """Join pieces to at least this size, except the last."""
    piece = bytearray()
    async for part in content:
        piece += part
        if len(piece) >= size:
            yield bytes(piece)
            piece.clear()
    if piece:
        yield bytes(piece)


@asynccontextmanager
async def _archiver(app: Path) -> AsyncIterator[tuple[asyncio.StreamReader, Callable[[], Coroutine[Any, Any, None]]]]:
    program = await asyncio.create_subprocess_exec(
        *ARCHIVER,
        f"--directory={app}",
        ".",
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        env={"LC_ALL": "C.UTF-8"},
        limit=PIECE_BYTES,
    )

    async def ended() -> None:
        if await program.wait() not in (0, tree.TAR_CHANGED):
            raise EngineUnavailable("The archive could not be made: some of the files cannot be read.")

    assert program.stdout
    try:
        yield program.stdout, ended
    finally:
        if program.returncode is None:
            program.kill()
            # asyncio reports a program's end only once its pipe was read.
            while await program.stdout.read(PIECE_BYTES):
                pass
            await program.wait()
