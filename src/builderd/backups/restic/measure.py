"""Measure the files of a disk before a backup of it.

This file is run as a program in a sandbox with the disk, by ``python3 -I -S -c``: standard library only. Its argument
is the most bytes that all files may claim to have. It prints one line of JSON: ``stored`` is about how many bytes
restic keeps of the disk; ``too_much`` is the file with which the claims exceed the limit.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
import sys

DISK = b"/disk"
#: Bytes of restic's description of an entry beside its name and attributes.
DESCRIPTION = 500
BLOCK = 512


def measure(disk: bytes, limit: int) -> dict[str, object]:
    """Add up the entries of the disk. Follows no link. Raises ``OSError`` for one that cannot be read."""
    claimed = stored = 0
    for folder, folders, files in os.walk(disk, onerror=_fail):
        for name in (*folders, *files):
            path = os.path.join(folder, name)  # noqa: PTH118
            status = os.lstat(path)
            if stat.S_ISREG(status.st_mode):
                claimed += status.st_size
            if claimed > limit:
                return {"too_much": os.fsdecode(path[len(disk) + 1 :])}
            stored += _stored(path, status)
    return {"stored": stored}


def _fail(error: OSError) -> None:
    raise error


def _stored(path: bytes, status: os.stat_result) -> int:
    """Return about how many bytes restic keeps of an entry: its content, its attributes in base64, a description."""
    is_file = stat.S_ISREG(status.st_mode)
    content = min(status.st_size, status.st_blocks * BLOCK) if is_file else 0
    attributes = 0
    if is_file or stat.S_ISDIR(status.st_mode):
        with contextlib.suppress(OSError):
            for name in os.listxattr(path, follow_symlinks=False):
                attributes += len(name) + len(os.getxattr(path, name, follow_symlinks=False))
    return content + attributes * 4 // 3 + DESCRIPTION + len(path)


def main(arguments: list[str]) -> int:
    try:
        answer = measure(DISK, int(arguments[0]))
    except OSError as error:
        answer = {"unreadable": f"{os.fsdecode(error.filename or b'')!r}: {error.strerror}"}
    print(json.dumps(answer))  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
