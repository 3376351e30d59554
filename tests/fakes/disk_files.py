"""Files on disks, in memory. There are no links, and no empty folders."""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime

from builderd.core.errors import NotFound, TooLarge
from builderd.core.ids import DiskId
from builderd.files.model import (
    IS_FILE,
    IS_FOLDER,
    NOT_EMPTY,
    Condition,
    FileEntry,
    FileKind,
    FilePage,
    bad_path,
    no_file,
)

_TIME = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass(slots=True)
class FakeDisk:
    """Files of one disk. ``executable``: paths of executable files; ``changes``: number of writes by path.

    ``built`` are the files that a build made of them, ``build_key`` its layer.
    """

    size_bytes: int
    files: dict[str, bytes] = field(default_factory=dict)
    bundle_hash: str | None = None
    built: dict[str, bytes] = field(default_factory=dict)
    build_key: str = ""
    executable: set[str] = field(default_factory=set)
    changes: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class FakeOpenFile:
    entry: FileEntry
    content: bytes

    async def read(self, start: int, length: int) -> AsyncIterator[bytes]:
        if piece := self.content[start : start + length]:
            yield piece


class FakeDiskFiles:
    """Implements ``ports.files.DiskFiles``."""

    def __init__(self) -> None:
        self.known_disks: dict[DiskId, FakeDisk] = {}

    def _disk(self, disk: DiskId) -> FakeDisk:
        if disk not in self.known_disks:
            raise NotFound(f"There is no disk {disk}.")
        return self.known_disks[disk]

    async def list_files(self, disk: DiskId, path: str, skip: int, count: int) -> FilePage:
        found = self._disk(disk)
        if path in found.files:
            raise bad_path(f"{path} {IS_FILE}")
        above = f"{path}/" if path else ""
        names = sorted({rest.partition("/")[0] for file in found.files if (rest := _below(file, above))})
        if path and not names:
            raise no_file(path)
        entries = [_entry(found, above + name) for name in names[skip : skip + count]]
        return FilePage(entries, len(names))

    @asynccontextmanager
    async def open_file(self, disk: DiskId, path: str) -> AsyncIterator[FakeOpenFile]:
        found = self._disk(disk)
        entry = _look(found, path)
        if entry is None:
            raise no_file(path)
        if entry.kind is FileKind.FOLDER:
            raise bad_path(f"{path} {IS_FOLDER}")
        yield FakeOpenFile(entry, found.files[path])

    async def write_file(
        self,
        disk: DiskId,
        path: str,
        content: AsyncIterator[bytes],
        *,
        condition: Condition,
        size: int | None = None,
        executable: bool | None = None,
    ) -> tuple[FileEntry, bool]:
        found = self._disk(disk)
        _check_free(found, path, condition)
        whole = b"".join([piece async for piece in content])
        used = sum(len(other) for name, other in found.files.items() if name != path)
        if used + len(whole) > found.size_bytes:
            raise TooLarge("The file does not fit on the builder's disk.")
        new = _check_free(found, path, condition)
        found.files[path] = whole
        found.changes[path] = found.changes.get(path, 0) + 1
        if executable is not None:
            found.executable -= {path}
            found.executable |= {path} if executable else set()
        return _entry(found, path), new

    async def delete_file(self, disk: DiskId, path: str, condition: Condition, *, recursive: bool = False) -> None:
        found = self._disk(disk)
        entry = _look(found, path)
        condition.check(entry.tag if entry else None)
        if entry is None:
            raise no_file(path)
        if entry.kind is FileKind.FOLDER and not recursive:
            raise bad_path(f"{path} {NOT_EMPTY}")
        gone = {file for file in found.files if file == path or file.startswith(f"{path}/")}
        found.files = {file: content for file, content in found.files.items() if file not in gone}

    async def archive(self, disk: DiskId) -> AsyncGenerator[bytes]:
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w") as tar:
            for path, content in self._disk(disk).files.items():
                member = tarfile.TarInfo(f"./{path}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
        yield packed.getvalue()


def _below(path: str, above: str) -> str:
    return path.removeprefix(above) if path.startswith(above) else ""


def _look(disk: FakeDisk, path: str) -> FileEntry | None:
    is_there = path in disk.files or any(file.startswith(f"{path}/") for file in disk.files)
    return _entry(disk, path) if is_there else None


def _entry(disk: FakeDisk, path: str) -> FileEntry:
    name = path.rpartition("/")[2]
    if path not in disk.files:
        return FileEntry(name, FileKind.FOLDER, 0, 0o755, _TIME, "folder")
    content = disk.files[path]
    tag = f"{disk.changes.get(path, 0)}-{hashlib.sha256(content).hexdigest()[:16]}"
    mode = 0o755 if path in disk.executable else 0o644
    return FileEntry(name, FileKind.FILE, len(content), mode, _TIME, tag)


def _check_free(disk: FakeDisk, path: str, condition: Condition) -> bool:
    """Return True when no file exists at the path. Raises when the condition fails or no file can be put there."""
    entry = _look(disk, path)
    condition.check(entry.tag if entry else None)
    if entry and entry.kind is FileKind.FOLDER:
        raise bad_path(f"{path} {IS_FOLDER}")
    parts = path.split("/")
    if any("/".join(parts[:depth]) in disk.files for depth in range(1, len(parts))):
        raise bad_path(f"{path} {IS_FILE}, or lies below what is none")
    return entry is None
