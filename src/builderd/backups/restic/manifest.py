"""The manifest of a disk, with a hash of each file: written before a backup, compared after a restore.

This file is run as a program in a sandbox with the disk, by ``python3 -I -S -c``: standard library only.

    record <limit>   write the manifest of /disk to /work/manifest; files unchanged since the manifest found there are
                     not read again. ``limit`` is bytes of all files; the manifest may have a 64th of that
    compare          read all of /disk and compare it with /work/manifest

It prints one line of JSON. ``stored`` in it is about how many bytes restic keeps of the disk: what the files take,
their extended attributes in base64, and a description of each entry.

A record is ``kind mode size hash inode ctime path`` and ends with NUL, since a path may contain any other byte. The
digest leaves out inode and change time, which a restore does not bring back. Records are sorted by path, so two
manifests are compared as streams. Sockets are left out: no process listens on them after a restore.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import stat
import sys
from collections.abc import Iterator
from typing import NamedTuple

DISK, LIST = b"/disk", b"/work/manifest"
SHOWN = 10
#: The manifest is not on the disk. At 200 bytes a file, this share allows a file for each 1,600 bytes of disk, since
#: the files may claim eight times the disk's size; the minimum allows some thousand files on a small disk.
LIST_SHARE, LEAST_LIST = 64, 1 << 20
#: Bytes of restic's description of an entry beside its name and attributes.
DESCRIPTION = 500
BLOCK = 512


class Entry(NamedTuple):
    """``path`` is relative to the disk; ``hash`` is the sha256 of the content, or of a link's target.

    ``stored`` is no part of the record.
    """

    path: bytes
    kind: str
    mode: int
    size: int
    hash: str
    inode: int
    changed: int
    stored: int = 0

    @property
    def order(self) -> list[bytes]:
        return self.path.split(b"/")

    @property
    def restorable(self) -> bytes:
        """The part of the record that a restore must reproduce."""
        return f"{self.kind} {self.mode:o} {self.size} {self.hash} ".encode() + self.path + b"\0"

    def write(self) -> bytes:
        head = f"{self.kind} {self.mode:o} {self.size} {self.hash} {self.inode} {self.changed} "
        return head.encode() + self.path + b"\0"


def parse(record: bytes) -> Entry:
    kind, mode, size, digest, inode, changed, path = record.split(b" ", 6)
    return Entry(path, kind.decode(), int(mode, 8), int(size), digest.decode(), int(inode), int(changed))


def read(path: bytes) -> Iterator[Entry]:
    """Yield the entries of a manifest; none if the file is missing."""
    with contextlib.suppress(FileNotFoundError), open(path, "rb") as file:  # noqa: PTH123
        rest = b""
        while piece := file.read(1 << 20):
            *records, rest = (rest + piece).split(b"\0")
            yield from map(parse, records)


class TooMuch(Exception):
    """The sum of the file sizes is over the limit."""


class TooLong(Exception):
    """The manifest is longer than its limit."""


def walk(disk: bytes, known: Iterator[Entry], limit: int | None = None) -> Iterator[Entry]:
    """Yield all entries of the disk, sorted by path; files unchanged since ``known`` are not read. Follows no link."""
    claimed = 0
    candidate = next(known, None)
    for path, status in _paths(disk):
        relative = path[len(disk) + 1 :]
        order = relative.split(b"/")
        while candidate is not None and candidate.order < order:
            candidate = next(known, None)
        if stat.S_ISREG(status.st_mode):
            claimed += status.st_size
            if limit is not None and claimed > limit:
                raise TooMuch(os.fsdecode(relative))
        entry = _entry(path, relative, status, candidate)
        if entry is not None:
            # Not for a comparison, after which nothing is stored.
            yield entry if limit is None else entry._replace(stored=_stored(path, status))


def _stored(path: bytes, status: os.stat_result) -> int:
    """Return about how many bytes restic keeps of an entry."""
    is_file = stat.S_ISREG(status.st_mode)
    content = min(status.st_size, status.st_blocks * BLOCK) if is_file else 0
    if not is_file and not stat.S_ISDIR(status.st_mode):
        return DESCRIPTION + len(path)
    attributes = 0
    with contextlib.suppress(OSError):
        for name in os.listxattr(path, follow_symlinks=False):
            attributes += len(name) + len(os.getxattr(path, name, follow_symlinks=False))
    return content + attributes * 4 // 3 + DESCRIPTION + len(path)


def _paths(disk: bytes) -> Iterator[tuple[bytes, os.stat_result]]:
    waiting = [_names(disk)]
    while waiting:
        path = waiting[-1].pop() if waiting[-1] else None
        if path is None:
            waiting.pop()
            continue
        status = os.lstat(path)
        yield path, status
        if stat.S_ISDIR(status.st_mode):
            waiting.append(_names(path))


def _names(folder: bytes) -> list[bytes]:
    """Return the paths in a folder, sorted in reverse."""
    return sorted((os.path.join(folder, name) for name in os.listdir(folder)), reverse=True)  # noqa: PTH118, PTH208


def _entry(path: bytes, relative: bytes, status: os.stat_result, candidate: Entry | None) -> Entry | None:
    mode = stat.S_IMODE(status.st_mode)
    if stat.S_ISDIR(status.st_mode):
        return Entry(relative, "d", mode, 0, "-", 0, 0)
    if stat.S_ISFIFO(status.st_mode):
        return Entry(relative, "p", mode, 0, "-", 0, 0)
    if stat.S_ISLNK(status.st_mode):
        return Entry(relative, "l", 0, 0, hashlib.sha256(os.readlink(path)).hexdigest(), 0, 0)  # noqa: PTH115
    if not stat.S_ISREG(status.st_mode):
        return None
    inode, changed, size = status.st_ino, status.st_ctime_ns, status.st_size
    if (
        candidate is not None
        and candidate[0] == relative
        and candidate[3] == size
        and candidate[5:7] == (inode, changed)
    ):
        return Entry(relative, "f", mode, size, candidate.hash, inode, changed)
    return Entry(relative, "f", mode, size, _hash(path), inode, changed)


def _hash(path: bytes) -> str:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb", buffering=0) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def record(disk: bytes, listed: bytes, limit: int) -> dict[str, object]:
    """Write the manifest again; return its digest and the count and bytes of its files."""
    new = listed + b".new"
    try:
        found = _write(new, walk(disk, read(listed), limit), list_limit(limit))
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(new)  # noqa: PTH108
        raise
    os.replace(new, listed)  # noqa: PTH105
    return found


def list_limit(limit: int) -> int:
    return max(limit // LIST_SHARE, LEAST_LIST)


def _write(listed: bytes, entries: Iterator[Entry], limit: int) -> dict[str, object]:
    digest, files, size, length, stored = hashlib.sha256(), 0, 0, 0, 0
    with open(listed, "wb") as file:  # noqa: PTH123
        for entry in entries:
            line = entry.write()
            length += len(line)
            if length > limit:
                raise TooLong(os.fsdecode(entry.path))
            file.write(line)
            digest.update(entry.restorable)
            files += entry.kind == "f"
            size += entry.size
            stored += entry.stored
    return {"digest": digest.hexdigest(), "files": files, "bytes": size, "stored": stored}


def compare(disk: bytes, listed: bytes) -> dict[str, object]:
    """Compare the disk with the manifest; return the manifest's totals and the first differences."""
    digest, files, size = hashlib.sha256(), 0, 0
    differences: list[str] = []
    found, wanted = walk(disk, iter(())), read(listed)
    have, want = next(found, None), next(wanted, None)
    while have is not None or want is not None:
        difference = _differ(have, want)
        if difference and len(differences) < SHOWN:
            differences.append(difference)
        both = have is not None and want is not None and have.path == want.path
        first = both or want is None or (have is not None and have.order < want.order)
        last = both or have is None or (want is not None and want.order < have.order)
        if last and want is not None:
            digest.update(want.restorable)
            files += want.kind == "f"
            size += want.size
            want = next(wanted, None)
        if first and have is not None:
            have = next(found, None)
    return {"digest": digest.hexdigest(), "files": files, "bytes": size, "differences": differences}


def _differ(have: Entry | None, want: Entry | None) -> str | None:
    if have is not None and want is not None and have.path == want.path:
        return None if have.restorable == want.restorable else f"differs: {os.fsdecode(want.path)!r}"
    if want is not None and (have is None or want.order < have.order):
        return f"missing: {os.fsdecode(want.path)!r}"
    return f"not in the backup: {os.fsdecode(have.path)!r}" if have else None


def main(arguments: list[str]) -> int:
    try:
        answer = record(DISK, LIST, int(arguments[1])) if arguments[0] == "record" else compare(DISK, LIST)
    except TooMuch as error:
        answer = {"too_much": str(error)}
    except TooLong as error:
        answer = {"too_long": str(error)}
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            # Only the manifest is written.
            print(json.dumps({"full": error.strerror}))  # noqa: T201
            return 0
        name = os.fsdecode(error.filename or b"")
        answer = {"unreadable": f"{name!r}: {error.strerror}"}
    print(json.dumps(answer))  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
