"""The program that unpacks a hostile archive: its input is the archive, its output a bundle's tar, a report its errors.

``python -m builderd.adapters.bundles.unpack <limits as JSON>``, in a process of its own that may use so much time and
memory, has no network, is nobody, and opens no file.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import io
import json
import os
import resource
import sys
import tarfile
from collections.abc import Iterator
from typing import BinaryIO

from builderd.adapters.bundles.formats import OVERHEAD_BYTES, Entry, entries
from builderd.domain.archives import ArchiveIndex, ArchiveLimits, ArchiveRejected
from builderd.domain.bundles import hash_of_digests

NOBODY = 65534
_CLONE_NEWNET = 0x4000_0000
_PR_SET_NO_NEW_PRIVS = 38


def confine(limits: ArchiveLimits) -> None:
    """From here on only what is open already can be read and written."""
    # What a codec is made of is read from the disk when it is first used.
    for codec in ("cp437", "utf-8", "ascii", "latin-1"):
        "".encode(codec)
    for what, most in (
        (resource.RLIMIT_AS, limits.memory_bytes),
        (resource.RLIMIT_FSIZE, limits.max_bytes + limits.max_files * OVERHEAD_BYTES),
        (resource.RLIMIT_CORE, 0),
        # Three are open; another one would be the fourth.
        (resource.RLIMIT_NOFILE, 3),
    ):
        resource.setrlimit(what, (most, most))
    # SIGXCPU at the first says what it was; SIGKILL at the second could be anybody's.
    resource.setrlimit(resource.RLIMIT_CPU, (limits.seconds, limits.seconds + 1))
    libc = ctypes.CDLL(None)
    if os.geteuid() == 0:
        libc.unshare(_CLONE_NEWNET)
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def unpack(archive: BinaryIO, out: BinaryIO, limits: ArchiveLimits) -> str:
    """Write the files as a tar and name the bundle by its hash. Raises ``Refused``.

    The first time through, everything is judged; only then the contents are read and written.
    """
    survey = ArchiveIndex(limits)
    for entry in entries(archive, limits):
        survey.add(entry.name, entry.kind, entry.size)
    paths, digests = survey.paths(), []
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for entry in entries(archive, limits):
            if (path := paths.get(entry.name)) is not None:
                content = _Content(entry)
                tar.addfile(_member(path, entry), content)
                digests.append((path, entry.executable, content.end()))
                tar.members.clear()  # type: ignore[attr-defined]
    return hash_of_digests(digests)


def _member(path: str, entry: Entry) -> tarfile.TarInfo:
    member = tarfile.TarInfo(path)
    member.size = entry.size
    member.mode = 0o755 if entry.executable else 0o644
    return member


class _Content(io.RawIOBase):
    """An entry's content, for who reads it like a file."""

    def __init__(self, entry: Entry) -> None:
        self._entry = entry
        self._chunks: Iterator[bytes] = entry.chunks()
        self._rest = b""
        self._digest = hashlib.sha256()

    def read(self, size: int | None = -1) -> bytes:
        assert size is not None
        while len(self._rest) < size and (chunk := next(self._chunks, b"")):
            self._rest += chunk
        piece, self._rest = self._rest[:size], self._rest[size:]
        self._digest.update(piece)
        return piece

    def end(self) -> bytes:
        """Its sha256. What else there is of it is looked at, too: it may not be as it should."""
        if self._rest or any(self._chunks):
            raise ArchiveRejected(self._entry.name, "is larger than the archive says")
        return self._digest.digest()


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
        report = {"refused": "The archive takes too much memory: it has too many entries, or too long ones."}
    except OSError as error:
        report = {"failed": f"{error.strerror or error}", "errno": str(error.errno or 0)}
    with contextlib.suppress(OSError):
        os.write(2, json.dumps(report).encode())


if __name__ == "__main__":
    main()
