"""Contract of every engine for files on its disks."""

from __future__ import annotations

import io
import tarfile
from collections.abc import AsyncIterator

import pytest
from tests.contract.engine import apps
from tests.engines import make_spec

from builderd.code.model import BundleFile, make_bundle
from builderd.core.errors import NotFound, PreconditionFailed, TooLarge, ValidationFailed
from builderd.core.ids import DiskId, new_id
from builderd.core.resources import GB
from builderd.engine.port import Engine
from builderd.files.model import UNCONDITIONAL, Condition, FileEntry, FileKind

MB = 1 << 20


@pytest.fixture
async def disk(engine: Engine) -> DiskId:
    disk = DiskId(new_id())
    await engine.disks.create_disk(disk, GB)
    files = [BundleFile("main.py", b"print(1)\n"), BundleFile("bin/run", b"true\n", executable=True)]
    await engine.disks.put_bundle(disk, make_bundle(files))
    return disk


async def pieces(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


async def broken(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part
    raise ConnectionError


async def write(engine: Engine, disk: DiskId, path: str, *parts: bytes) -> FileEntry:
    entry, _ = await engine.files.write_file(disk, path, pieces(*parts), condition=UNCONDITIONAL)
    return entry


async def read(engine: Engine, disk: DiskId, path: str, start: int = 0, length: int = MB) -> bytes:
    async with engine.files.open_file(disk, path) as file:
        return b"".join([piece async for piece in file.read(start, length)])


async def names(engine: Engine, disk: DiskId, path: str = "") -> list[str]:
    return [entry.name for entry in (await engine.files.list_files(disk, path, 0, 100)).entries]


async def test_folder_is_listed_in_pages(engine: Engine, disk: DiskId) -> None:
    for number in range(5):
        await write(engine, disk, f"data/{number}.txt", b"x" * number)
    page = await engine.files.list_files(disk, "data", 1, 3)
    assert [(entry.name, entry.kind, entry.size, entry.mode) for entry in page.entries] == [
        (f"{number}.txt", FileKind.FILE, number, 0o644) for number in (1, 2, 3)
    ]
    assert page.total == 5
    top = await engine.files.list_files(disk, "", 0, 100)
    assert {entry.name: entry.kind for entry in top.entries} == {
        "bin": FileKind.FOLDER,
        "data": FileKind.FOLDER,
        "main.py": FileKind.FILE,
    }
    assert (await engine.files.list_files(disk, "data", 9, 3)).entries == []


async def test_file_is_read_whole_or_by_range(engine: Engine, disk: DiskId) -> None:
    content = bytes(range(256)) * 10_000
    await write(engine, disk, "big.bin", content[:1_000_000], content[1_000_000:])
    assert await read(engine, disk, "big.bin", 0, len(content)) == content
    assert await read(engine, disk, "big.bin", 1_500_000, 10) == content[1_500_000:1_500_010]
    assert await read(engine, disk, "big.bin", len(content) - 5, 100) == content[-5:]
    async with engine.files.open_file(disk, "big.bin") as file:
        assert (file.entry.name, file.entry.size) == ("big.bin", len(content))


async def test_write_creates_folders_and_keeps_the_mode(engine: Engine, disk: DiskId) -> None:
    first, new = await engine.files.write_file(disk, "a/b/c", pieces(b"one"), condition=UNCONDITIONAL, executable=True)
    assert (new, first.mode, first.size) == (True, 0o755, 3)
    second, new = await engine.files.write_file(disk, "a/b/c", pieces(b"two"), condition=UNCONDITIONAL)
    assert (new, second.mode) == (False, 0o755)
    assert first.tag != second.tag
    third, _ = await engine.files.write_file(disk, "a/b/c", pieces(), condition=UNCONDITIONAL, executable=False)
    assert (third.mode, third.size) == (0o644, 0)
    assert await read(engine, disk, "a/b/c") == b""


async def test_conditional_write_checks_the_present_file(engine: Engine, disk: DiskId) -> None:
    seen = await write(engine, disk, "file", b"one")
    only_new, only_seen = Condition(differs=frozenset({"*"})), Condition(matches=frozenset({seen.tag}))
    with pytest.raises(PreconditionFailed):
        await engine.files.write_file(disk, "file", pieces(b"x"), condition=only_new)
    await engine.files.write_file(disk, "file", pieces(b"two"), condition=only_seen)
    for condition in (only_seen, Condition(differs=frozenset({"*"}))):
        with pytest.raises(PreconditionFailed):
            await engine.files.write_file(disk, "file", pieces(b"x"), condition=condition)
        with pytest.raises(PreconditionFailed):
            await engine.files.delete_file(disk, "file", condition)
    with pytest.raises(PreconditionFailed):
        await engine.files.write_file(disk, "other", pieces(b"x"), condition=Condition(matches=frozenset({"*"})))
    assert await read(engine, disk, "file") == b"two"
    await engine.files.write_file(disk, "other", pieces(b"x"), condition=only_new)
    await engine.files.delete_file(disk, "file", Condition(matches=frozenset({"*"})))


async def test_etag_changes_only_with_the_file(engine: Engine, disk: DiskId) -> None:
    written = await write(engine, disk, "file", b"one")
    async with engine.files.open_file(disk, "file") as file:
        assert file.entry.tag == written.tag
    (listed,) = [entry for entry in (await engine.files.list_files(disk, "", 0, 100)).entries if entry.name == "file"]
    assert listed.tag == written.tag


async def test_interrupted_write_keeps_the_old_content(engine: Engine, disk: DiskId) -> None:
    with pytest.raises(ConnectionError):
        await engine.files.write_file(disk, "main.py", broken(b"x" * 3 * MB), condition=UNCONDITIONAL)
    assert await read(engine, disk, "main.py") == b"print(1)\n"
    assert await names(engine, disk) == ["bin", "main.py"]


async def test_write_over_the_disk_limit_keeps_the_old_content(engine: Engine) -> None:
    disk = DiskId(new_id())
    await engine.disks.create_disk(disk, 8 * MB)
    await write(engine, disk, "file", b"old")
    with pytest.raises(TooLarge, match="does not fit"):
        await write(engine, disk, "file", *[bytes(range(256)) * 4096] * 12)
    with pytest.raises(TooLarge):
        await engine.files.write_file(disk, "file", pieces(b"x" * 9 * MB), condition=UNCONDITIONAL, size=9 * MB)
    assert await read(engine, disk, "file") == b"old"
    assert await names(engine, disk) == ["file"]
    await write(engine, disk, "file", b"new")


async def test_files_and_folders_are_deleted(engine: Engine, disk: DiskId) -> None:
    await write(engine, disk, "a/b/c", b"x")
    with pytest.raises(ValidationFailed, match="not empty"):
        await engine.files.delete_file(disk, "a", UNCONDITIONAL)
    await engine.files.delete_file(disk, "main.py", UNCONDITIONAL)
    await engine.files.delete_file(disk, "a", UNCONDITIONAL, recursive=True)
    assert await names(engine, disk) == ["bin"]
    with pytest.raises(NotFound):
        await engine.files.delete_file(disk, "main.py", UNCONDITIONAL)


async def test_missing_path_is_not_found(engine: Engine, disk: DiskId) -> None:
    for path in ("nothing", "nothing/deeper"):
        with pytest.raises(NotFound):
            await read(engine, disk, path)
        with pytest.raises(NotFound):
            await engine.files.list_files(disk, path, 0, 10)
        with pytest.raises(NotFound):
            await engine.files.delete_file(disk, path, UNCONDITIONAL)
    with pytest.raises(NotFound):
        await engine.files.list_files(DiskId(new_id()), "", 0, 10)


async def test_file_and_folder_calls_reject_the_other_kind(engine: Engine, disk: DiskId) -> None:
    with pytest.raises(ValidationFailed, match="is a folder"):
        await read(engine, disk, "bin")
    with pytest.raises(ValidationFailed, match="is a folder"):
        await write(engine, disk, "bin", b"x")
    with pytest.raises(ValidationFailed, match="is no folder"):
        await engine.files.list_files(disk, "main.py", 0, 10)
    with pytest.raises(ValidationFailed, match="is no folder"):
        await write(engine, disk, "main.py/deeper", b"x")


async def test_archive_contains_all_files(engine: Engine, disk: DiskId) -> None:
    await write(engine, disk, "data/grüße.txt", b"hallo")
    packed = b"".join([piece async for piece in engine.files.archive(disk)])
    with tarfile.open(fileobj=io.BytesIO(packed)) as tar:
        files = {member.name: tar.extractfile(member) for member in tar if member.isfile()}
        contents = {name: file.read() for name, file in files.items() if file}
    assert contents == {"./main.py": b"print(1)\n", "./bin/run": b"true\n", "./data/grüße.txt": b"hallo"}


async def test_files_are_accessible_beside_a_running_app(engine: Engine) -> None:
    spec = await make_spec(engine, apps.SILENT)
    await engine.sandboxes.start(spec)
    await write(engine, spec.disk, "seen.txt", b"seen")
    assert await read(engine, spec.disk, "seen.txt") == b"seen"
    await engine.files.delete_file(spec.disk, "seen.txt", UNCONDITIONAL)
