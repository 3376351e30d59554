"""Bundles in a folder, one tar file each, named by their hash.

A file gets its name only once it is on the disk in full, so that a crash leaves either all of it or nothing.
What is read is hashed again: a damaged file counts as missing, and putting the bundle again mends it.
"""

from __future__ import annotations

import asyncio
import io
import logging
import os
import re
import tarfile
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path

from builderd.domain.bundles import Bundle, BundleFile, bundle_hash

log = logging.getLogger(__name__)

_HASH = re.compile(r"[0-9a-f]{64}")


class LocalBundles:
    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def put(self, bundle: Bundle) -> None:
        await asyncio.to_thread(self._put, bundle)

    async def get(self, bundle_hash: str) -> Bundle:
        return await asyncio.to_thread(self._get, bundle_hash)

    async def hashes(self) -> Collection[str]:
        return await asyncio.to_thread(self._hashes)

    async def delete(self, bundle_hash: str) -> None:
        if _HASH.fullmatch(bundle_hash):
            await asyncio.to_thread(self._path(bundle_hash).unlink, missing_ok=True)

    def _hashes(self) -> Collection[str]:
        return frozenset(path.stem for path in self._folder.glob("*.tar") if _HASH.fullmatch(path.stem))

    def _put(self, bundle: Bundle) -> None:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not self._has(bundle.hash):
            _write_whole(self._path(bundle.hash), _pack(bundle))

    def _has(self, name: str) -> bool:
        """Whether it is there and whole; a damaged one is taken away to make room."""
        try:
            self._get(name)
        except KeyError:
            self._path(name).unlink(missing_ok=True)
            return False
        return True

    def _get(self, name: str) -> Bundle:
        if not _HASH.fullmatch(name):
            raise KeyError(name)
        try:
            packed = self._path(name).read_bytes()
        except FileNotFoundError:
            raise KeyError(name) from None
        files = _unpack(packed)
        if files is None or bundle_hash(files) != name:
            log.error("bundle %s is damaged on the disk: deploy its version again", name)
            raise KeyError(name)
        return Bundle(name, files)

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.tar"


def _pack(bundle: Bundle) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for file in bundle.files:
            member = tarfile.TarInfo(file.path)
            member.size = len(file.content)
            member.mode = 0o755 if file.executable else 0o644
            tar.addfile(member, io.BytesIO(file.content))
    return packed.getvalue()


def _unpack(packed: bytes) -> tuple[BundleFile, ...] | None:
    try:
        with tarfile.open(fileobj=io.BytesIO(packed), mode="r:") as tar:
            return tuple(_members(tar))
    except (tarfile.TarError, EOFError, ValueError):
        return None


def _members(tar: tarfile.TarFile) -> Iterator[BundleFile]:
    for member in tar:
        content = tar.extractfile(member)
        if content is None:
            raise ValueError(member.name)
        yield BundleFile(member.name, content.read(), executable=bool(member.mode & 0o100))


def _write_whole(path: Path, content: bytes) -> None:
    """A nameless file is filled and only then linked: a crash before that leaves nothing to clean up."""
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        nameless = os.open(path.parent, os.O_WRONLY | os.O_TMPFILE | os.O_CLOEXEC, 0o600)
        with os.fdopen(nameless, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(nameless)
            _link(nameless, path.name, folder)
        os.fsync(folder)
    finally:
        os.close(folder)


def _link(nameless: int, name: str, folder: int) -> None:
    # Somebody else may have put the same bundle meanwhile.
    with suppress(FileExistsError):
        # Python calls linkat(2), which follows the link in /proc, only where a folder is given.
        os.link(f"/proc/self/fd/{nameless}", name, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=True)
