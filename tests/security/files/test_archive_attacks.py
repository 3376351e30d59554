"""Hostile archives: refused with the entry at fault, in bounded memory and time, and nothing of them is left."""

from __future__ import annotations

import gzip
import io
import os
import resource
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard

from builderd.code.bundles import unpack as unpack_program
from builderd.code.bundles.local import LocalBundles
from builderd.code.model import ArchiveLimits, ArchiveRejected, Bundle
from builderd.core.errors import BuilderdError, TooLarge, ValidationFailed

LIMITS = ArchiveLimits(max_files=1000, max_bytes=20_000_000, seconds=20)


async def unpack(folder: Path, archive: bytes, limits: ArchiveLimits = LIMITS) -> Bundle:
    (folder / "archive").write_bytes(archive)
    with (folder / "archive").open("rb") as file:
        return await LocalBundles(folder / "bundles").unpack(file, limits)


def refused(archive: bytes, limits: ArchiveLimits = LIMITS) -> ArchiveRejected:
    """Return the message with which the unpacking program rejects the archive, run without its process."""
    with pytest.raises(ArchiveRejected) as raised:
        unpack_program.unpack(io.BytesIO(archive), io.BytesIO(), limits)
    return raised.value


async def refused_at_once(folder: Path, archive: bytes, limits: ArchiveLimits = LIMITS) -> BuilderdError:
    """Assert that the bundle store rejects the archive, and leaves nothing."""
    with pytest.raises((ValidationFailed, TooLarge)) as raised:
        await unpack(folder, archive, limits)
    assert list((folder / "bundles").iterdir()) == []
    return raised.value


def tar(*entries: tuple[str, bytes] | tarfile.TarInfo, kind: int = tarfile.PAX_FORMAT) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=kind) as out:
        for entry in entries:
            if isinstance(entry, tarfile.TarInfo):
                out.addfile(entry)
            else:
                member = tarfile.TarInfo(entry[0])
                member.size = len(entry[1])
                out.addfile(member, io.BytesIO(entry[1]))
    return packed.getvalue()


def zipped(*entries: tuple[str | zipfile.ZipInfo, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", method) as out:
        for name, content in entries:
            out.writestr(name, content, method)
    return packed.getvalue()


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


def unix(name: str, mode: int) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.create_system, info.external_attr = 3, mode << 16
    return info


def patched(packed: bytes, magic: bytes, offset: int, value: bytes, nth: int = 0) -> bytes:
    """Return the archive with other bytes in the nth record that begins with this signature."""
    at = -1
    for _ in range(nth + 1):
        at = packed.index(magic, at + 1)
    return packed[: at + offset] + value + packed[at + offset + len(value) :]


CENTRAL, LOCAL = b"PK\x01\x02", b"PK\x03\x04"
GOOD = ("main.py", b"print(1)\n")


# What is taken


@pytest.mark.parametrize(
    "pack",
    [
        lambda files: zipped(*files),
        lambda files: zipped(*files, method=zipfile.ZIP_STORED),
        lambda files: tar(*files),
        lambda files: tar(*files, kind=tarfile.GNU_FORMAT),
        lambda files: tar(*files, kind=tarfile.USTAR_FORMAT),
        lambda files: gzip.compress(tar(*files)),
        lambda files: zstandard.compress(tar(*files)),
        lambda files: zstandard.compress(tar(*files)[:700]) + zstandard.compress(tar(*files)[700:]),
    ],
)
async def test_zip_and_tar_formats_are_accepted(tmp_path: Path, pack: Callable[[Any], bytes]) -> None:
    bundle = await unpack(tmp_path, pack([GOOD, ("a/b.txt", b"x" * 100_000), ("empty", b"")]))
    assert [(file.path, file.size) for file in bundle.files] == [("a/b.txt", 100_000), ("empty", 0), ("main.py", 9)]
    assert await LocalBundles(tmp_path / "bundles").get(bundle.hash) == bundle


@pytest.mark.parametrize("pack", [tar, zipped])
async def test_single_top_level_folder_is_stripped(tmp_path: Path, pack: Callable[..., bytes]) -> None:
    bundle = await unpack(tmp_path, pack(("repo-main/src/a", b"a"), ("repo-main/b", b"b"), ("__MACOSX/._b", b"")))
    assert [file.path for file in bundle.files] == ["b", "src/a"]
    bundle = await unpack(tmp_path, pack(("./one/a", b"a"), ("./two/b", b"b")))
    assert [file.path for file in bundle.files] == ["one/a", "two/b"]


async def test_executable_bit_is_preserved(tmp_path: Path) -> None:
    bundle = await unpack(tmp_path, zipped((unix("run", 0o100755), b"x"), (unix("no", 0o100644), b"y"), GOOD))
    assert {file.path: file.executable for file in bundle.files} == {"run": True, "no": False, "main.py": False}


# Names that lead elsewhere, or are two things at once

NAMES = {
    "../up": "must not contain ..",
    "a/../../up": "must not contain ..",
    "/etc/passwd": "must be relative",
    "//host/share": "must be relative",
    "C:/windows": "must be relative",
    "a\\..\\..\\up": "backslash",
    "a//b": "empty or . segment",
    "a/./b": "empty or . segment",
    "x" * 300: "longer than 255 bytes",
    "/".join(["a"] * 70): "folders deep",
    "/".join(["a" * 200] * 6): "at most 1024 bytes",
}


@pytest.mark.parametrize("pack", [tar, zipped])
@pytest.mark.parametrize(("name", "why"), NAMES.items())
def test_path_traversal_in_entry_name_is_rejected(pack: Callable[..., bytes], name: str, why: str) -> None:
    error = refused(pack(GOOD, (name, b"x")))
    assert why in error.message
    assert name[:20].replace("\\", "\\\\") in error.message


def test_entry_name_with_nul_or_invalid_utf8_is_rejected() -> None:
    packed = patched(zipped(("a!b", b"x"), GOOD), CENTRAL, 46, b"a\0b")
    refused(patched(packed, LOCAL, 30, b"a\0b"))
    packed = tar(("a!b", b"x"), kind=tarfile.GNU_FORMAT)
    bad = bytearray(packed)
    bad[0:3] = b"a\xffb"
    bad[148:156] = b"%06o\0 " % (sum(bad[:148]) + 8 * 32 + sum(bad[156:512]))
    assert "Unicode" in refused(bytes(bad)).message


COLLISIONS = {
    "case": ("README", "readme", "only in the case"),
    "case of a folder": ("Src/a", "src/b", "only in the case"),
    "case of letters that others know": ("straße", "STRASSE", "only in the case"),
    "coding": ("é", "e\u0301", "only in the case or the coding"),
    "twice": ("a", "a", "is there twice"),
    "twice with a dot": ("a", "./a", "is there twice"),
    "file and folder": ("a", "a/b", "both a file and a folder"),
    "folder and file": ("a/b", "a", "both a file and a folder"),
}


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("pack", [tar, zipped])
@pytest.mark.parametrize(("first", "second", "why"), COLLISIONS.values(), ids=COLLISIONS)
def test_duplicate_entry_names_are_rejected(pack: Callable[..., bytes], first: str, second: str, why: str) -> None:
    assert why in refused(pack((first, b"x"), (second, b"y"))).message


# What is no file

KINDS = {
    "symbolic link": tar(GOOD, special("evil", tarfile.SYMTYPE, "/etc/passwd")),
    "link within": tar(GOOD, special("evil", tarfile.SYMTYPE, "main.py")),
    "hard link": tar(GOOD, special("evil", tarfile.LNKTYPE, "main.py")),
    "character device": tar(GOOD, special("evil", tarfile.CHRTYPE)),
    "block device": tar(GOOD, special("evil", tarfile.BLKTYPE)),
    "pipe": tar(GOOD, special("evil", tarfile.FIFOTYPE)),
    "unknown kind": tar(GOOD, special("evil", b"V")),
    "link in a zip": zipped(GOOD, (unix("evil", 0o120777), b"/etc/passwd")),
    "device in a zip": zipped(GOOD, (unix("evil", 0o060666), b"")),
    "pipe in a zip": zipped(GOOD, (unix("evil", 0o010666), b"")),
    "encrypted": patched(zipped(GOOD, ("evil", b"x")), CENTRAL, 8, b"\x01\0", nth=1),
    "strongly encrypted": patched(zipped(GOOD, ("evil", b"x")), CENTRAL, 8, b"\x41\0", nth=1),
}


@pytest.mark.parametrize("archive", KINDS.values(), ids=KINDS)
def test_links_and_special_files_are_rejected_by_name(archive: bytes) -> None:
    assert '"evil"' in refused(archive).message


# Bombs


class Peak:
    """The largest memory that any process had which this one has waited for, in bytes."""

    @staticmethod
    def of_children() -> int:
        return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024


def zeros(size: int) -> bytes:
    member = tarfile.TarInfo("evil")
    member.size = size
    return member.tobuf(tarfile.PAX_FORMAT)


def bomb_gz() -> bytes:
    packed = io.BytesIO()
    with gzip.GzipFile(fileobj=packed, mode="wb", compresslevel=9) as out:
        out.write(zeros(1 << 33))
        for _ in range(64):
            out.write(bytes(1 << 20))
    return packed.getvalue()


def bomb_zst() -> bytes:
    compressor = zstandard.ZstdCompressor(19).compressobj()
    pieces = [compressor.compress(zeros(1 << 33))] + [compressor.compress(bytes(1 << 20)) for _ in range(64)]
    return b"".join(pieces) + compressor.flush()


def overlapping() -> bytes:
    """Two entries of the directory that share one content."""
    return patched(zipped(GOOD, ("evil", b"print(1)\n")), CENTRAL, 42, struct.pack("<I", 0), nth=1)


def flat_bomb() -> bytes:
    return zipped(("evil", bytes(100_000_000)))


def lying_bomb() -> bytes:
    """A zip that says 9 bytes, and has a hundred million."""
    packed = zipped(("evil", bytes(100_000_000)))
    for magic, offset in ((CENTRAL, 24), (LOCAL, 22)):
        packed = patched(packed, magic, offset, struct.pack("<I", 9))
    return packed


def window_bomb() -> bytes:
    """A frame that asks for a window of 2 GB."""
    return b"\x28\xb5\x2f\xfd" + bytes([0x00, 0xA8]) + b"\x01\x00\x00" + bytes(600)


def long_name_bomb() -> bytes:
    """A header of 4 GB for one name."""
    member = tarfile.TarInfo("././@LongLink")
    member.type, member.size = tarfile.GNUTYPE_LONGNAME, 1 << 32
    compressor = zstandard.ZstdCompressor().compressobj()
    pieces = [compressor.compress(member.tobuf(tarfile.GNU_FORMAT))]
    pieces += [compressor.compress(b"a" * (1 << 20)) for _ in range(64)]
    return b"".join(pieces) + compressor.flush()


def sparse_bomb() -> bytes:
    """A terabyte of hole."""
    headers = {
        "GNU.sparse.major": "1",
        "GNU.sparse.minor": "0",
        "GNU.sparse.name": "evil",
        "GNU.sparse.realsize": "1099511627776",
    }
    member = tarfile.TarInfo("evil")
    member.pax_headers, member.size = headers, 512
    return member.tobuf(tarfile.PAX_FORMAT) + b"1\n0\n0\n".ljust(512, b"\0") + bytes(1024)


BOMBS = {
    "gzip": bomb_gz,
    "zstd": bomb_zst,
    "zip": flat_bomb,
    "lying zip": lying_bomb,
    "overlapping zip": overlapping,
    "window": window_bomb,
    "long name": long_name_bomb,
    "sparse": sparse_bomb,
    "many in a tar": lambda: gzip.compress(b"".join(tarfile.TarInfo(f"f{n}").tobuf() for n in range(20_000))),
    "many in a zip": lambda: zipped(*((f"f{n}", b"") for n in range(20_000))),
    "long names": lambda: gzip.compress(tar(*((f"{n:04}/" + "/".join(["n" * 250] * 3), b"") for n in range(2000)))),
    "negative size": lambda: patched(tar(("evil", b"")), b"evil", 124, b"\xff" * 12),
}


@pytest.mark.parametrize("make", BOMBS.values(), ids=BOMBS)
async def test_decompression_bomb_is_rejected(tmp_path: Path, make: Callable[[], bytes]) -> None:
    archive = make()
    assert len(archive) < 3_000_000
    await refused_at_once(tmp_path, archive)
    assert Peak.of_children() < 1 << 30


def many_in_a_tar(count: int) -> bytes:
    """So many empty files, each with a name and a check sum of its own."""
    header = bytearray(tarfile.TarInfo("0000000").tobuf(tarfile.USTAR_FORMAT))
    first = int(header[148:154], 8)
    packed = io.BytesIO()
    with gzip.GzipFile(fileobj=packed, mode="wb", compresslevel=1) as out:
        for number in range(count):
            name = b"%07d" % number
            header[0:7] = name
            header[148:154] = b"%06o" % (first + sum(name) - 7 * ord("0"))
            out.write(header)
        out.write(bytes(1024))
    return packed.getvalue()


def many_in_a_zip(count: int) -> bytes:
    """Return a zip of ``count`` files whose directory says at its end that it has ten."""
    files, directory = bytearray(), bytearray()
    for number in range(count):
        at, name = len(files), b"%07d" % number
        files += struct.pack("<4sHHHHHIIIHH", LOCAL, 20, 0, 0, 0, 0, 0, 0, 0, 7, 0) + name
        directory += (
            struct.pack("<4sHHHHHHIIIHHHHHII", CENTRAL, 20, 20, 0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 0, 0, at) + name
        )
    end = struct.pack("<4sHHHHIIH", b"PK\x05\x06", 0, 0, 10, 10, len(directory), len(files), 0)
    return bytes(files + directory) + end


# The limit is 100,000: script/soak tries ten times as many.
@pytest.mark.parametrize("count", [110_000, pytest.param(1_000_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("make", [many_in_a_tar, many_in_a_zip])
async def test_archive_with_too_many_entries_is_rejected_at_default_limits(
    tmp_path: Path, make: Callable[[int], bytes], count: int
) -> None:
    error = await refused_at_once(tmp_path, make(count), ArchiveLimits())
    assert '"0100000" is one too many' in error.message
    assert Peak.of_children() < 1 << 30


def test_entry_over_the_file_limit_is_named() -> None:
    error = refused(tar(*((f"f{n}", b"") for n in range(1001))))
    assert error.too_large
    assert '"f1000"' in error.message
    assert "at most 1000 files" in error.message


def test_entry_over_the_size_limit_is_named() -> None:
    for pack in (tar, zipped):
        error = refused(pack(("a", bytes(20_000_000)), ("b", b"x")))
        assert error.too_large
        assert '"b"' in error.message


async def test_unpacking_is_killed_at_its_time_limit(tmp_path: Path) -> None:
    slow = ArchiveLimits(max_bytes=10**12, seconds=1)
    frames = zstandard.compress(zeros(1 << 33)) + zstandard.compress(bytes(1 << 26)) * 128
    assert "too long" in (await refused_at_once(tmp_path, frames, slow)).message


# Damage and lies

DAMAGE = {
    "nothing": b"",
    "no archive": b"hello" * 1000,
    "rar": b"Rar!\x1a\x07\x00" + bytes(1000),
    "bzip2": b"BZh91AY&SY" + bytes(1000),
    "cut tar": tar(("evil", bytes(100_000)))[:50_000],
    "cut tar.gz": gzip.compress(tar(("evil", os.urandom(100_000))))[:50_000],
    "cut tar.zst": zstandard.compress(tar(("evil", os.urandom(100_000))))[:50_000],
    "cut zip": zipped(("evil", os.urandom(100_000)))[:50_000],
    "empty tar": tar(),
    "empty zip": zipped(),
    "folders alone": tar(special("a", tarfile.DIRTYPE)),
    "wrong check sum": patched(zipped(("evil", b"x" * 100)), CENTRAL, 16, b"abcd"),
    "larger than said": patched(zipped(("evil", b"x" * 100)), CENTRAL, 24, struct.pack("<I", 99)),
    "smaller than said": patched(zipped(("evil", b"x" * 100)), CENTRAL, 24, struct.pack("<I", 101)),
    "another name inside": patched(zipped(("evil", b"x")), LOCAL, 30, b"good"),
    "another place": patched(zipped(("evil", b"x")), CENTRAL, 42, struct.pack("<I", 7)),
    "beyond the end": patched(zipped(("evil", b"x")), CENTRAL, 42, struct.pack("<I", 1 << 30)),
    "another method": patched(zipped(("evil", b"x")), CENTRAL, 10, struct.pack("<H", 14)),
    "no deflate": patched(zipped(("evil", b"x" * 100)), LOCAL, 34, b"\xff\xff\xff"),
    "a folder with a content": zipped(("evil/", b"x"), GOOD),
    "a damaged header": patched(tar(GOOD, ("evil", b"x")), b"evil", 148, b"0000000"),
    "zeros after gzip": gzip.compress(tar(("evil", bytes(5000))))[:-8] + bytes(8),
}


@pytest.mark.parametrize("archive", DAMAGE.values(), ids=DAMAGE)
def test_damaged_or_inconsistent_archive_is_rejected(archive: bytes) -> None:
    assert not refused(archive).too_large


def test_trailing_data_after_archive_is_rejected() -> None:
    """A second stream behind the first, which another program might read instead."""
    deflater = zlib.compressobj(wbits=-15)
    stream = deflater.compress(b"x") + deflater.flush()
    packed = zipped(("evil", stream + stream), method=zipfile.ZIP_STORED)
    for magic, method, crc, sizes in ((LOCAL, 8, 14, 22), (CENTRAL, 10, 16, 24)):
        packed = patched(packed, magic, method, struct.pack("<H", 8))
        packed = patched(packed, magic, crc, struct.pack("<I", zlib.crc32(b"x")))
        packed = patched(packed, magic, sizes, struct.pack("<I", 1))
    assert "has data after its end" in refused(packed).message


# The process that reads them

CONFINED = """
import ctypes, os, socket, sys
from builderd.code.bundles.unpack import confine
from builderd.code.model import ArchiveLimits
confine(ArchiveLimits())
def fails(what):
    try: what()
    except (OSError, MemoryError): return True
told = [os.getuid(), os.geteuid(), os.getgroups(), fails(lambda: os.open("/etc/passwd", os.O_RDONLY)),
        fails(lambda: socket.create_connection(("127.0.0.1", 22), 1)), fails(lambda: bytearray(1 << 31)),
        fails(lambda: socket.socket(socket.AF_UNIX)), fails(os.fork), ctypes.CDLL(None).unshare(0x10000000)]
os.write(2, repr(told).encode())
"""


@pytest.mark.root
async def test_unpacking_process_is_nobody_without_files_network_or_children() -> None:
    import subprocess
    import sys

    told = subprocess.run([sys.executable, "-c", CONFINED], stderr=subprocess.PIPE, check=True).stderr
    assert told == b"[65534, 65534, [], True, True, True, True, True, -1]"
