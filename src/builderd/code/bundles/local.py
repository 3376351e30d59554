"""Bundles in a local folder: one tar file each, named by its hash.

A file gets its name only once it is synced to the disk, so a crash leaves all of it or nothing. The hash is checked
once for each state of the file: a damaged one counts as missing, and storing the bundle again repairs it. Contents are
read from the file when they are needed.
"""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import os
import re
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, replace
from pathlib import Path
from typing import BinaryIO

from builderd.code.bundles.tars import Tar, pack, read_files, state_of
from builderd.code.bundles.unpack import most_bytes
from builderd.code.model import (
    Alteration,
    ArchiveLimits,
    Bundle,
    altered,
    bundle_hash,
    check_result,
    check_size,
)
from builderd.code.port import BundleSpace
from builderd.core.errors import RETRY_AFTER, NoCapacity, TooLarge, ValidationFailed, helper_died, machine_fault
from builderd.core.loops import counted
from builderd.core.resources import size_text

log = logging.getLogger(__name__)

#: How the operator makes room.
REMEDY = "Its operator can free space where the data directory is (df -h, builderd doctor)."
_HASH = re.compile(r"[0-9a-f]{64}")


class LocalBundles:
    """``floor_bytes`` of its file system stay free of code."""

    def __init__(self, folder: Path, floor_bytes: int = 0) -> None:
        self._folder = folder
        self._floor_bytes = floor_bytes
        self._sizes = StoredSizes(self.sizes)
        self._unpacking = asyncio.Semaphore(CONCURRENCY)
        self._lock = asyncio.Lock()
        #: Pins of each bundle by its hash.
        self.pins: Counter[str] = Counter()
        #: Files whose hash was checked: ``Tar.state`` by hash.
        self._whole: dict[str, tuple[int, int, int]] = {}

    def exclusive(self) -> asyncio.Lock:
        return self._lock

    def pinned(self, bundle_hash: str) -> AbstractContextManager[None]:
        return counted(self.pins, bundle_hash)

    async def put(self, bundle: Bundle) -> None:
        self._sizes.put(bundle.hash, await asyncio.to_thread(self._put, bundle))

    async def unpack(self, archive: BinaryIO, limits: ArchiveLimits) -> Bundle:
        async with self._unpacking:
            with _nameless(self._folder) as out:
                name = await unpack(archive, out, replace(limits, room_bytes=self._room(limits)))
                bundle = await asyncio.to_thread(self._adopt, name, out.fileno())
        await self._note(name)
        return bundle

    def _room(self, limits: ArchiveLimits) -> int:
        """Return the bytes that an archive may write: its limits, or its part of the free space.

        Others that are unpacked at the same time get as much. Raises ``NoCapacity`` without free space.
        """
        if (free := self._free()) <= 0:
            raise no_room(free)
        return min(most_bytes(limits), free // CONCURRENCY)

    def _adopt(self, name: str, descriptor: int) -> Bundle:
        """Store the unpacked tar under its name, after checking that its hash is the reported one."""
        content = Tar(os.dup(descriptor))
        files = read_files(content)
        if files is None or bundle_hash(files) != name:
            raise RuntimeError("the unpacked archive does not have the reported hash")
        self._publish(name, descriptor)
        return Bundle(name, files)

    def _publish(self, name: str, descriptor: int) -> None:
        """Give an unnamed file, whose hash was checked, its name."""
        os.fsync(descriptor)
        folder = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            # Python calls linkat(2), which follows the link in /proc, only where a folder is given.
            source, target = f"/proc/self/fd/{descriptor}", self._path(name).name
            os.link(source, target, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=True)
            os.fsync(folder)
            self._whole[name] = state_of(os.fstat(descriptor))
        except FileExistsError:
            pass  # another request has stored it meanwhile; its file is checked when it is read, or was
        finally:
            os.close(folder)

    async def alter(self, bundle_hash: str, alteration: Alteration, limits: ArchiveLimits) -> Bundle:
        async with self._unpacking:
            bundle = await asyncio.to_thread(self._alter, bundle_hash, alteration, limits)
        await self._note(bundle.hash)
        return bundle

    def _alter(self, base: str, alteration: Alteration, limits: ArchiveLimits) -> Bundle:
        before = self._get(base)
        files = altered(before, alteration)
        check_size(files, limits)
        if files == before.files:
            check_result(base, alteration)
            return before
        self._refuse_below_floor(Bundle("", files).packed_size)
        with _nameless(self._folder) as out:
            name = pack(files, out)
            check_result(name, alteration)
            out.flush()
            self._publish(name, out.fileno())
        return Bundle(name, files)

    async def get(self, bundle_hash: str) -> Bundle:
        return await asyncio.to_thread(self._get, bundle_hash)

    def open_packed(self, bundle_hash: str) -> BinaryIO:
        """Open the stored tar for reading. Raises ``KeyError`` when no bundle has this hash."""
        try:
            return self._path(bundle_hash).open("rb")
        except FileNotFoundError:
            raise KeyError(bundle_hash) from None

    async def put_packed(self, bundle_hash: str, chunks: AsyncIterator[bytes]) -> Bundle:
        """Store a tar that ``open_packed`` gave, in place of a damaged one.

        Raises ``KeyError`` when its contents have another hash, and stores nothing then.
        """
        with _nameless(self._folder) as out:
            async for chunk in chunks:
                await asyncio.to_thread(out.write, chunk)
            out.flush()
            bundle = await asyncio.to_thread(self._replace, bundle_hash, out.fileno())
        await self._note(bundle_hash)
        return bundle

    def _replace(self, name: str, descriptor: int) -> Bundle:
        files = read_files(Tar(os.dup(descriptor)))
        if files is None or bundle_hash(files) != name:
            raise KeyError(name)
        self._path(name).unlink(missing_ok=True)
        self._publish(name, descriptor)
        return Bundle(name, files)

    async def hashes(self) -> Collection[str]:
        return await asyncio.to_thread(self._hashes)

    async def sizes(self) -> Mapping[str, int]:
        """Return the bytes on the disk of each stored bundle, by hash."""
        return await asyncio.to_thread(lambda: {one: self._size(one) for one in self._hashes()})

    async def space(self) -> BundleSpace:
        used = await self._sizes.total()
        return BundleSpace(used, await asyncio.to_thread(self._free), REMEDY)

    async def stored_bytes(self, bundles: Collection[str]) -> int:
        return await self._sizes.of(bundles)

    async def delete(self, bundle_hash: str) -> None:
        if _HASH.fullmatch(bundle_hash) and bundle_hash not in self.pins:
            await asyncio.to_thread(self._path(bundle_hash).unlink, missing_ok=True)
            self._sizes.drop(bundle_hash)
            self._whole.pop(bundle_hash, None)

    def _hashes(self) -> Collection[str]:
        return frozenset(path.stem for path in self._folder.glob("*.tar") if _HASH.fullmatch(path.stem))

    def _put(self, bundle: Bundle) -> int:
        """Return the bytes of its file."""
        try:
            self._get(bundle.hash)
        except KeyError:
            self._path(bundle.hash).unlink(missing_ok=True)  # a damaged one
            self._refuse_below_floor(bundle.packed_size)
            with _nameless(self._folder) as out:
                pack(bundle.files, out)
                out.flush()
                self._publish(bundle.hash, out.fileno())
        return self._size(bundle.hash)

    async def _note(self, name: str) -> None:
        self._sizes.put(name, await asyncio.to_thread(self._size, name))

    def _size(self, name: str) -> int:
        """Return the bytes of a bundle's file, 0 where it was removed meanwhile."""
        try:
            return self._path(name).stat().st_size
        except FileNotFoundError:
            return 0

    def _free(self) -> int:
        """Return the bytes that are free above the floor, negative below it."""
        folder = self._folder if self._folder.exists() else self._folder.parent
        space = os.statvfs(folder)
        return space.f_bavail * space.f_frsize - self._floor_bytes

    def _refuse_below_floor(self, more: int) -> None:
        """Raise ``NoCapacity`` when so many bytes more would leave less free than the floor."""
        if (free := self._free()) < more:
            raise NoCapacity(
                f"There is no room for {size_text(more)} of code on the machine: {size_text(free)} are free above the "
                f"floor. {REMEDY}",
                retry_after=60,
            )

    def _get(self, name: str) -> Bundle:
        if not _HASH.fullmatch(name):
            raise KeyError(name)
        try:
            content = Tar(os.open(self._path(name), os.O_RDONLY | os.O_CLOEXEC))
        except FileNotFoundError:
            raise KeyError(name) from None
        files = read_files(content)
        if files is None or (self._whole.get(name) != content.state and bundle_hash(files) != name):
            log.error("bundle damaged on disk, deploy its version again bundle=%s", name)
            raise KeyError(name)
        self._whole[name] = content.state
        return Bundle(name, files)

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.tar"


def _nameless(folder: Path) -> BinaryIO:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return os.fdopen(os.open(folder, os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, 0o600), "w+b")


class StoredSizes:
    """``load`` returns the bytes of all stored bundles, by hash."""

    def __init__(self, load: Callable[[], Awaitable[Mapping[str, int]]]) -> None:
        self._load = load
        self._loading = asyncio.Lock()
        self._sizes: dict[str, int] | None = None
        self._total = 0

    async def total(self) -> int:
        """Return the bytes of all bundles together."""
        await self._known()
        return self._total

    async def of(self, bundles: Collection[str]) -> int:
        """Return the bytes of these bundles together; those that are not stored count nothing."""
        sizes = await self._known()
        return sum(sizes.get(one, 0) for one in bundles)

    def put(self, bundle: str, size: int) -> None:
        if self._sizes is not None:
            self._total += size - self._sizes.get(bundle, 0)
            self._sizes[bundle] = size

    def drop(self, bundle: str) -> None:
        if self._sizes is not None:
            self._total -= self._sizes.pop(bundle, 0)

    async def _known(self) -> Mapping[str, int]:
        async with self._loading:
            if self._sizes is None:
                self._sizes = dict(await self._load())
                self._total = sum(self._sizes.values())
        return self._sizes


_MODULE = "builderd.code.bundles.unpack"
_SOURCE = str(Path(__file__).parents[3])
_REPORT_BYTES = 65_536
#: Limit of wall time, as a multiple of the limit of CPU time: the machine may be busy.
_WALL_TIME_FACTOR = 5
#: Archives unpacked at the same time: each may use the memory of its limits.
CONCURRENCY = 2


async def unpack(archive: BinaryIO, out: BinaryIO, limits: ArchiveLimits) -> str:
    """Write the archive's files as a bundle's tar, and return the bundle's hash, which the caller must check.

    Raises ``ValidationFailed``, ``TooLarge``, ``NoCapacity`` or ``MachineFault``.
    """
    in_time = True
    program = await asyncio.create_subprocess_exec(
        *(sys.executable, "-s", "-P", "-m", _MODULE, json.dumps(asdict(limits))),
        stdin=archive,
        stdout=out,
        stderr=asyncio.subprocess.PIPE,
        cwd="/",
        env={"PYTHONPATH": _SOURCE, "PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert program.stderr
    try:
        async with asyncio.timeout(limits.seconds * _WALL_TIME_FACTOR):
            report = await _all(program.stderr)
            await program.wait()
    except TimeoutError:
        report, in_time = b"", False
    finally:
        if program.returncode is None:
            program.kill()
            await _all(program.stderr)  # unread, it never counts as ended
            await program.wait()
    if in_time and program.returncode == -signal.SIGKILL:
        raise helper_died("the process that unpacks archives", "was killed")
    return _judge(report, program.returncode, limits)


async def _all(stream: asyncio.StreamReader) -> bytes:
    """Read to the end, and keep the first ``_REPORT_BYTES``: the process blocks while its pipe is full."""
    kept = b""
    while piece := await stream.read(_REPORT_BYTES):
        kept += piece[: _REPORT_BYTES - len(kept)]
    return kept


def _judge(report: bytes, status: int | None, limits: ArchiveLimits) -> str:
    try:
        answer = json.loads(report)
    except ValueError:
        slow = status in (None, -signal.SIGXCPU, -signal.SIGKILL)
        raise refusal(f"The archive {'takes too long to be unpacked' if slow else 'cannot be read'}.") from None
    if "hash" in answer:
        return str(answer["hash"])
    if "failed" in answer:
        number = str(answer.get("errno", ""))
        if number == str(errno.EFBIG) and limits.room_bytes is not None:
            raise no_room(limits.room_bytes)
        fault = machine_fault(OSError(int(number), answer["failed"])) if number.isdecimal() else None
        raise fault or NoCapacity(
            f"There is no room to unpack the archive: {answer['failed']}.", retry_after=RETRY_AFTER
        )
    if answer.get("too_large") == "True":
        raise TooLarge(answer["refused"])
    raise refusal(answer["refused"])


def no_room(left: int) -> NoCapacity:
    """Return the error for an archive that takes more than the bytes which are left for it."""
    return NoCapacity(
        f"There is no room to unpack the archive on the machine: {size_text(left)} are left for it above the floor. "
        "Its operator can free space where the data directory is (df -h, builderd doctor).",
        retry_after=RETRY_AFTER,
    )


def refusal(why: str) -> ValidationFailed:
    """Return the error for an archive that is refused."""
    return ValidationFailed({"source": [why]}, why)
