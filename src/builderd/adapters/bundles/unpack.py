"""The program that unpacks a hostile archive: stdin is the archive, stdout the bundle's tar, stderr a JSON report.

``python -m builderd.adapters.bundles.unpack <limits as JSON>`` runs with limits of time and memory, without network,
as uid 65534 (nobody), and can neither open files, start processes nor make a call of ``sandboxing.seccomp``'s list.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tarfile
from typing import BinaryIO

from builderd.adapters.bundles.formats import entries, most_bytes
from builderd.adapters.bundles.tars import Reader, add_member
from builderd.domain.bundles import ArchiveIndex, ArchiveLimits, ArchiveRejected, hash_of_digests
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
