"""Bundles as tar files: packed with the hash of the written bytes, and read by parts of an open file."""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
from collections.abc import Iterable, Iterator
from typing import BinaryIO

from builderd.code.model import BundleFile, hash_of_digests


def state_of(status: os.stat_result) -> tuple[int, int, int]:
    """Return what changes when a file is replaced or written to."""
    return status.st_ino, status.st_mtime_ns, status.st_size


class Tar:
    """An open tar file, closed with its last reference."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.state = state_of(os.fstat(descriptor))

    def __del__(self) -> None:
        os.close(self.descriptor)


class _Stored:
    """The bytes of one file within a tar. Implements ``domain.bundles.Content``."""

    __slots__ = ("_start", "_tar", "size")

    def __init__(self, tar: Tar, start: int, size: int) -> None:
        self._tar = tar
        self._start = start
        self.size = size

    def read(self, start: int, length: int) -> bytes:
        wanted = min(length, self.size - start)
        read = b"" if wanted <= 0 else os.pread(self._tar.descriptor, wanted, self._start + start)
        if len(read) < wanted:
            raise OSError("a bundle was truncated while it was read")
        return read


def pack(files: Iterable[BundleFile], out: BinaryIO) -> str:
    """Write the files as a tar; return the bundle's hash of the bytes that were written."""
    digests = []
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for file in files:
            content = Reader(file.chunks())
            add_member(tar, file.path, file.size, content, executable=file.executable)
            digests.append((file.path, file.executable, content.digest.digest()))
    return hash_of_digests(digests)


def add_member(tar: tarfile.TarFile, path: str, size: int, content: Reader, *, executable: bool) -> None:
    member = tarfile.TarInfo(path)
    member.size = size
    member.mode = 0o755 if executable else 0o644
    tar.addfile(member, content)
    # tarfile keeps a list of all members otherwise.
    tar.members.clear()  # type: ignore[attr-defined]


class Reader(io.RawIOBase):
    """File-like reader of chunks, for ``tarfile``; hashes what it reads."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._rest = b""
        self.digest = hashlib.sha256()

    def read(self, size: int | None = -1) -> bytes:
        assert size is not None
        while len(self._rest) < size and (chunk := next(self._chunks, b"")):
            self._rest += chunk
        piece, self._rest = self._rest[:size], self._rest[size:]
        self.digest.update(piece)
        return piece

    def has_more(self) -> bool:
        """Return True if content is left."""
        return bool(self._rest) or any(self._chunks)


def read_files(content: Tar) -> tuple[BundleFile, ...] | None:
    """Return the files, whose bytes are read from the open tar when they are needed; None if it is damaged.

    Their hash is not checked.
    """
    try:
        with os.fdopen(os.dup(content.descriptor), "rb") as file:
            file.seek(0)
            with tarfile.open(fileobj=file, mode="r:") as tar:
                files = list(_files(tar, content))
    except (tarfile.TarError, EOFError, ValueError):
        return None
    return tuple(sorted(files, key=lambda file: file.path))


def _files(tar: tarfile.TarFile, content: Tar) -> Iterator[BundleFile]:
    while (member := tar.next()) is not None:
        if not member.isreg():
            raise ValueError(member.name)
        source = _Stored(content, member.offset_data, member.size)
        yield BundleFile(member.name, source, executable=bool(member.mode & 0o100))
        # tarfile keeps a list of all members otherwise.
        tar.members.clear()  # type: ignore[attr-defined]
