"""Files and folders of one control group, whichever its hierarchy and version.

A group may be removed at any time. What the kernel then answers is raised as ``FileNotFoundError``, as for a group that
is gone.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def removed_as_missing() -> Iterator[None]:
    """Raise ``FileNotFoundError`` for ENODEV: the kernel's error for a group that is just being removed."""
    try:
        yield
    except OSError as error:
        if error.errno != errno.ENODEV:
            raise
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT)) from error


def read(file: Path | str) -> str:
    """Return the text of a group's file. Raises ``FileNotFoundError`` when the group is gone."""
    # Called often: pathlib takes four times as long.
    with removed_as_missing():
        descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return b"".join(iter(lambda: os.read(descriptor, 1 << 16), b"")).decode()
        finally:
            os.close(descriptor)


def write(file: Path, value: str) -> None:
    """Write a group's file. Raises ``FileNotFoundError`` when the group is gone, and never creates a file.

    Not by Python's own files, which look whether they can seek: that fails in a group that is just being removed.
    """
    with removed_as_missing():
        descriptor = os.open(file, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(descriptor, value.encode())
        finally:
            os.close(descriptor)


def processes_below(directory: Path) -> list[int]:
    """Return the pids in a group and in the groups below it; none when it is gone."""
    found: list[int] = []
    for folder, _, _ in os.walk(directory):
        with contextlib.suppress(OSError):
            found.extend(int(line) for line in Path(folder, "cgroup.procs").read_text().split())
    return found


def remove_tree(directory: Path) -> None:
    """Remove a group's folders, the innermost first; their files cannot be unlinked."""
    for folder, _, _ in os.walk(directory, topdown=False):
        with contextlib.suppress(OSError):
            Path(folder).rmdir()


def counter(file: Path | str, name: str) -> int:
    """Return the number after a name in a flat keyed file."""
    return counters(file).get(name, 0)


def counters(file: Path | str) -> dict[str, int]:
    """Return the numbers of a flat keyed file by their names."""
    pairs = (line.split(" ", 1) for line in read(file).splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdecimal()}
