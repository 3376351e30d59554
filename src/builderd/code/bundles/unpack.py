"""The program that unpacks a hostile archive: stdin is the archive, stdout the bundle's tar, stderr a JSON report.

Archives are zip, tar, tar.gz or tar.zst. The standard library reads a zip's central directory, this module the
contents: each file must have exactly the size and CRC of the directory. Formats: APPNOTE.TXT 6.3.10 (zip), RFC 1952
(gzip), RFC 8878 (zstd); tar as tarfile reads it.

``python -m builderd.code.bundles.unpack <limits as JSON>`` runs with limits of time and memory, without network,
as uid 65534 (nobody), and can neither open files, start processes nor make a call of ``sandboxing.privileges``'s list.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import os
import stat
import struct
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import BinaryIO

import zstandard

from builderd.code.bundles.tars import Reader, add_member
from builderd.code.model import ArchiveIndex, ArchiveLimits, ArchiveRejected, EntryKind, hash_of_digests
from builderd.sandboxing.privileges import Limits, become_nobody, leave_network, lock_down


def confine(limits: ArchiveLimits) -> None:
    """Drop privileges: afterwards only the open descriptors can be read and written."""
    # A codec is loaded from the disk at its first use.
    for codec in ("cp437", "utf-8", "ascii", "latin-1"):
        "".encode(codec)
    if os.geteuid() == 0:
        leave_network()
        become_nobody()
    lock_down(
        Limits(
            cpu_seconds=limits.seconds,
            address_space=limits.memory_bytes,
            file_bytes=most_bytes(limits) if limits.room_bytes is None else limits.room_bytes,
            processes=0,
            # stdin, stdout and stderr: no further file can be opened.
            descriptors=3,
        )
    )


def unpack(archive: BinaryIO, out: BinaryIO, limits: ArchiveLimits) -> str:
    """Unpack an archive: write its files as a tar and return the hash of the bundle. Raises ``Refused``.

    A first pass checks all entries; only the second reads and writes contents.
    """
    survey = ArchiveIndex(limits)
    for entry in entries(archive, limits):
        survey.add(entry.name, entry.kind, entry.size)
    paths, digests = survey.paths(), []
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for entry in entries(archive, limits):
            if (path := paths.get(entry.name)) is not None:
                content = Reader(entry.chunks())
                add_member(tar, path, entry.size, content, executable=entry.executable)
                if content.has_more():
                    raise ArchiveRejected(entry.name, "is larger than the archive says")
                digests.append((path, entry.executable, content.digest.digest()))
    return hash_of_digests(digests)


CHUNK = 1 << 18
#: The largest window that zstd's tools use by default, in bytes (``--ultra``, ``--long=27``).
MAX_WINDOW = 1 << 27
#: Bytes of tar headers, padding and long names for each file.
OVERHEAD_BYTES = 4096
_LOCAL = struct.Struct("<4sHHHHHIIIHH")
_LOCAL_MAGIC = b"PK\x03\x04"
_END = struct.Struct("<4sHHHHIIH")
_END64 = struct.Struct("<4sQHHIIQQQQ")
_ENCRYPTED = 1 | 1 << 6 | 1 << 13
_UTF8 = 1 << 11
_UNIX = 3


@dataclass(frozen=True, slots=True)
class Entry:
    """One archive entry. Call ``chunks`` to read its content before asking for the next entry."""

    name: str
    kind: EntryKind
    size: int
    executable: bool
    chunks: Callable[[], Iterator[bytes]]


def entries(archive: BinaryIO, limits: ArchiveLimits) -> Iterator[Entry]:
    """Yield all entries from the start. Raises ``Refused`` for another format or a damaged archive."""
    archive.seek(0)
    head = archive.read(512)
    archive.seek(0)
    if head.startswith((_LOCAL_MAGIC, b"PK\x05\x06")):
        yield from _zip_entries(archive, limits)
    elif head.startswith(b"\x1f\x8b"):
        with gzip.GzipFile(fileobj=archive) as unpacked:
            yield from _tar_entries(unpacked, limits)  # type: ignore[arg-type]
    elif head.startswith(b"\x28\xb5\x2f\xfd"):
        decompressor = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW)
        with decompressor.stream_reader(archive, read_across_frames=True, closefd=False) as unpacked:
            yield from _tar_entries(unpacked, limits)
    elif _is_tar(head):
        yield from _tar_entries(archive, limits)
    else:
        raise ArchiveRejected("", "has an unknown format: send a zip, tar, tar.gz or tar.zst")


def _is_tar(head: bytes) -> bool:
    """Detect tar by its header checksum: the old format has no magic bytes."""
    try:
        tarfile.TarInfo.frombuf(head, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    return True


# tar


def most_bytes(limits: ArchiveLimits) -> int:
    """Return the most bytes that a bundle within these limits takes as a tar."""
    return limits.max_bytes + limits.max_files * OVERHEAD_BYTES


class _Counted(io.RawIOBase):
    """Limits the bytes read from a stream: a terabyte may compress to a megabyte."""

    def __init__(self, stream: BinaryIO, limits: ArchiveLimits) -> None:
        self._stream = stream
        self._left = most_bytes(limits)
        self._limits = limits
        self.entry = ""

    def read(self, size: int | None = -1) -> bytes:
        chunk = self._stream.read(CHUNK if size is None or size < 0 else min(size, CHUNK))
        self._left -= len(chunk)
        if self._left < 0:
            why = f"is too large: the limit of all files together is {self._limits.max_bytes} bytes"
            raise ArchiveRejected(self.entry, why, too_large=True)
        return chunk


def _tar_entries(stream: BinaryIO, limits: ArchiveLimits) -> Iterator[Entry]:
    counted = _Counted(stream, limits)
    opened = {"encoding": "utf-8", "errors": "surrogateescape", "tarinfo": _Member}
    with _reporting_damage(counted), tarfile.open(fileobj=counted, mode="r|", **opened) as tar:  # type: ignore[call-overload]
        while (member := tar.next()) is not None:
            # tarfile keeps a list of all members otherwise.
            tar.members.clear()
            counted.entry = member.name
            yield _tar_entry(tar, member)
        # The checksum of gzip and zstd comes last.
        while counted.read():
            pass


class _Member(tarfile.TarInfo):
    @classmethod
    def fromtarfile(cls, tarfile_: tarfile.TarFile) -> _Member:
        """Raise for an invalid header; tarfile would take it for the end and ignore the rest."""
        try:
            return super().fromtarfile(tarfile_)
        except (tarfile.InvalidHeaderError, tarfile.TruncatedHeaderError) as error:  # type: ignore[attr-defined]
            raise tarfile.ReadError(str(error)) from None


def _tar_entry(tar: tarfile.TarFile, member: tarfile.TarInfo) -> Entry:
    def chunks() -> Iterator[bytes]:
        content, left = tar.extractfile(member), member.size
        assert content is not None
        while left:
            chunk = content.read(min(CHUNK, left))
            if not chunk:
                raise ArchiveRejected(member.name, "is truncated")
            left -= len(chunk)
            yield chunk

    name = f"{member.name}/" if member.isdir() else member.name
    return Entry(name, _tar_kind(member), member.size, bool(member.mode & 0o111), chunks)


def _tar_kind(member: tarfile.TarInfo) -> EntryKind:
    if member.issym() or member.islnk():
        return EntryKind.LINK
    if member.isdev():
        return EntryKind.DEVICE
    if member.issparse():
        return EntryKind.SPARSE
    if member.isdir():
        return EntryKind.FOLDER
    return EntryKind.FILE if member.type in tarfile.REGULAR_TYPES else EntryKind.UNKNOWN


@contextmanager
def _reporting_damage(counted: _Counted) -> Iterator[None]:
    try:
        yield
    except (tarfile.TarError, EOFError, OSError, zlib.error, zstandard.ZstdError, ValueError, OverflowError) as error:
        where = counted.entry
        raise ArchiveRejected(where, f"{'or what follows it ' if where else ''}cannot be read: {error}") from None


# zip


def _zip_entries(archive: BinaryIO, limits: ArchiveLimits) -> Iterator[Entry]:
    # Too many entries are refused by the count in the end record; a false count runs into the memory limit.
    archive.seek(0, io.SEEK_END)
    archive.seek(max(archive.tell() - 65_557 - _END64.size - 20, 0))
    tail = archive.read()
    end, end64 = tail.rfind(b"PK\x05\x06"), tail.rfind(b"PK\x06\x06")
    count = _END.unpack_from(tail, end)[4] if 0 <= end <= len(tail) - _END.size else 0
    if count == 0xFFFF and 0 <= end64 <= len(tail) - _END64.size:
        count = _END64.unpack_from(tail, end64)[7]
    if count > 2 * limits.max_files:
        raise ArchiveRejected("", f"has {count} entries: the limit is {limits.max_files} files", too_large=True)
    try:
        infos = zipfile.ZipFile(archive).infolist()
    except (zipfile.BadZipFile, NotImplementedError, struct.error, ValueError, OSError, EOFError) as error:
        raise ArchiveRejected("", f"cannot be read as a zip: {error}") from None
    _check_overlap(archive, infos)
    for info in infos:
        mode = info.external_attr >> 16 if info.create_system == _UNIX else 0
        chunks = partial(_zip_chunks, archive, info)
        yield Entry(info.orig_filename, _zip_kind(info, mode), info.file_size, bool(mode & 0o111), chunks)


def _check_overlap(archive: BinaryIO, infos: list[zipfile.ZipInfo]) -> None:
    """Refuse overlapping entries, which make a zip bomb (https://www.bamsoftware.com/hacks/zipbomb)."""
    ends = (_local(archive, info)[0] + info.compress_size for info in infos)
    placed = sorted((info.header_offset, end, info.orig_filename) for info, end in zip(infos, ends, strict=True))
    for (_, end, _), (start, _, name) in pairwise(placed):
        if start < end:
            raise ArchiveRejected(name, "overlaps another entry")


def _local(archive: BinaryIO, info: zipfile.ZipInfo) -> tuple[int, bytes]:
    """Return the offset of an entry's content and the name in its local header."""
    archive.seek(info.header_offset)
    header = archive.read(_LOCAL.size)
    if len(header) < _LOCAL.size or not header.startswith(_LOCAL_MAGIC):
        raise ArchiveRejected(info.orig_filename, "has no local header where the directory says")
    *_, name_length, extra_length = _LOCAL.unpack(header)
    return info.header_offset + _LOCAL.size + name_length + extra_length, archive.read(name_length)


def _zip_kind(info: zipfile.ZipInfo, mode: int) -> EntryKind:
    if info.flag_bits & _ENCRYPTED:
        return EntryKind.ENCRYPTED
    if stat.S_ISLNK(mode):
        return EntryKind.LINK
    if info.orig_filename.endswith("/"):
        return EntryKind.FOLDER if info.file_size == 0 else EntryKind.UNKNOWN
    if stat.S_IFMT(mode) in (0, stat.S_IFREG):
        return EntryKind.FILE
    return EntryKind.UNKNOWN if stat.S_ISDIR(mode) else EntryKind.DEVICE


def _zip_chunks(archive: BinaryIO, info: zipfile.ZipInfo) -> Iterator[bytes]:
    """Yield the content. Raises ``Refused`` unless size and CRC match the directory."""
    start, name = _local(archive, info)
    if name.decode("utf-8" if info.flag_bits & _UTF8 else "cp437", "replace") != info.orig_filename:
        raise ArchiveRejected(info.orig_filename, "has another name in its local header")
    archive.seek(start)
    size = crc = 0
    for chunk in _unpacked(archive, info):
        size += len(chunk)
        if size > info.file_size:
            break
        crc = zlib.crc32(chunk, crc)
        yield chunk
    if (size, crc) != (info.file_size, info.CRC):
        raise ArchiveRejected(info.orig_filename, "differs from its header: another size or checksum")


def _unpacked(archive: BinaryIO, info: zipfile.ZipInfo) -> Iterator[bytes]:
    if info.compress_type == zipfile.ZIP_STORED:
        yield from _packed(archive, info)
    elif info.compress_type == zipfile.ZIP_DEFLATED:
        yield from _inflated(archive, info)
    else:
        raise ArchiveRejected(info.orig_filename, "is not compressed by deflate: pack the zip with deflate")


def _packed(archive: BinaryIO, info: zipfile.ZipInfo) -> Iterator[bytes]:
    left = info.compress_size
    while left:
        chunk = archive.read(min(CHUNK, left))
        if not chunk:
            raise ArchiveRejected(info.orig_filename, "is truncated")
        left -= len(chunk)
        yield chunk


def _inflated(archive: BinaryIO, info: zipfile.ZipInfo) -> Iterator[bytes]:
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        for chunk in _packed(archive, info):
            rest = chunk
            while rest and not inflater.eof:
                yield inflater.decompress(rest, CHUNK)
                rest = inflater.unconsumed_tail
            if inflater.eof and (inflater.unused_data or rest):
                raise ArchiveRejected(info.orig_filename, "has data after its end")
        while not inflater.eof and (last := inflater.decompress(b"", CHUNK)):
            yield last
    except zlib.error as error:
        raise ArchiveRejected(info.orig_filename, f"cannot be read: {error}") from None
    if not inflater.eof:
        raise ArchiveRejected(info.orig_filename, "is truncated")


def main() -> None:
    limits = ArchiveLimits(**json.loads(sys.argv[1]))
    archive, out = os.fdopen(0, "rb", closefd=False), os.fdopen(1, "wb", closefd=False)
    confine(limits)
    try:
        report = {"hash": unpack(archive, out, limits)}
        out.flush()
    except ArchiveRejected as refused:
        report = {"refused": refused.message, "too_large": str(refused.too_large)}
    except MemoryError:
        report = {"refused": "The archive needs too much memory: it has too many entries, or too long names."}
    except OSError as error:
        report = {"failed": f"{error.strerror or error}", "errno": str(error.errno or 0)}
    with contextlib.suppress(OSError):
        os.write(2, json.dumps(report).encode())
    # At its end the interpreter would write what is buffered, and tell of an error behind the report.
    os._exit(0)


if __name__ == "__main__":
    main()
