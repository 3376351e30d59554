"""Attacks on the files API by an app that has its hands on the same files."""

from __future__ import annotations

import asyncio
import io
import tarfile
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from tests.contract.engine import apps
from tests.contract.engine.test_disk_files import names, read, write
from tests.engines import ENGINE_TIMEOUT, execute, make_spec

from builderd.core.errors import BuilderdError, EngineUnavailable, InvalidState, NotFound, ValidationFailed
from builderd.core.ids import DiskId, new_id
from builderd.engine.oci.engine.engine import OciEngine
from builderd.engine.oci.storage import files
from builderd.engine.oci.storage.files import ARCHIVES
from builderd.engine.port import Process
from builderd.executions.model import ProcessSpec
from builderd.files.model import UNCONDITIONAL, FileKind
from builderd.sandboxes.model import SandboxSpec

pytestmark = pytest.mark.root


@pytest.fixture
async def spec(engine: OciEngine) -> SandboxSpec:
    spec = await make_spec(engine, apps.SILENT)
    await engine.sandboxes.start(spec)
    return spec


@pytest.fixture
def disk(spec: SandboxSpec) -> DiskId:
    return spec.disk


async def do(engine: OciEngine, spec: SandboxSpec, command: str) -> str:
    """Run a command as the app."""
    result = await execute(engine, spec.id, command, ENGINE_TIMEOUT, 100_000)
    assert result.exit_code == 0, result.output
    return result.output


async def archived(engine: OciEngine, disk: DiskId) -> dict[str, tarfile.TarInfo]:
    packed = b"".join([piece async for piece in engine.files.archive(disk)])
    with tarfile.open(fileobj=io.BytesIO(packed)) as tar:
        return {member.name: member for member in tar}


async def begun(process: Process) -> None:
    """Wait until a program says so."""
    said = b""
    while not said.endswith(b"begun\n"):
        said += await process.read()


# Links

LINKS = {
    "absolute": "ln -s {outside}/secret link",
    "relative": "ln -s ../../../../../../../../../..{outside}/secret link",
    "chained": "ln -s {outside}/secret first; ln -s first link",
    "magic": "ln -s /proc/self/root{outside}/secret link",
    "another process": "ln -s /proc/1/root{outside}/secret link",
    "inside": "echo canary >target; ln -s target link",
    "itself": "ln -s link link",
    "nowhere": "ln -s /nowhere link",
}


@pytest.mark.parametrize("make", LINKS.values(), ids=LINKS)
async def test_link_is_listed_and_never_followed(
    engine: OciEngine, spec: SandboxSpec, disk: DiskId, outside: Path, make: str
) -> None:
    await do(engine, spec, make.format(outside=outside))
    with pytest.raises(ValidationFailed, match="links are not followed"):
        await read(engine, disk, "link")
    (shown,) = [entry for entry in (await engine.files.list_files(disk, "", 0, 9)).entries if entry.name == "link"]
    assert (shown.kind, bool(shown.target)) == (FileKind.LINK, True)
    assert (await archived(engine, disk))["./link"].issym()


async def test_linked_folder_is_never_entered(
    engine: OciEngine, spec: SandboxSpec, disk: DiskId, outside: Path
) -> None:
    (outside / "folder").mkdir()
    await do(engine, spec, f"ln -s {outside} out; ln -s / root; ln -s .. up; mkdir in; ln -s {outside} in/out")
    for path in ("out/secret", "in/out/secret", f"root{outside}/secret", f"up/..{outside}/secret", "up/up/secret"):
        with pytest.raises((ValidationFailed, NotFound)):
            await read(engine, disk, path)
        with pytest.raises((ValidationFailed, NotFound)):
            await write(engine, disk, path, b"owned")
        with pytest.raises((ValidationFailed, NotFound)):
            await engine.files.delete_file(disk, path, UNCONDITIONAL)
    for path in ("out", "in/out", "root", "up"):
        with pytest.raises(ValidationFailed):
            await engine.files.list_files(disk, path, 0, 9)
    with pytest.raises(ValidationFailed):
        await write(engine, disk, "out/new/file", b"owned")
    assert sorted(path.name for path in outside.iterdir()) == ["folder", "secret"]
    assert (outside / "secret").read_text() == "canary"


async def test_writing_over_a_link_replaces_the_link(
    engine: OciEngine, spec: SandboxSpec, disk: DiskId, outside: Path
) -> None:
    await do(engine, spec, f"ln -s {outside}/secret link; ln -s {outside}/made dangling")
    await write(engine, disk, "link", b"new")
    await write(engine, disk, "dangling", b"new")
    assert await read(engine, disk, "link") == b"new"
    assert (outside / "secret").read_text() == "canary"
    assert not (outside / "made").exists()


async def test_deleting_a_link_keeps_its_target(
    engine: OciEngine, spec: SandboxSpec, disk: DiskId, outside: Path
) -> None:
    await do(engine, spec, f"ln -s {outside}/secret link; ln -s {outside} out; mkdir -p a/b; ln -s {outside} a/b/out")
    for path in ("link", "out"):
        await engine.files.delete_file(disk, path, UNCONDITIONAL, recursive=True)
    await engine.files.delete_file(disk, "a", UNCONDITIONAL, recursive=True)
    assert await names(engine, disk) == []
    assert (outside / "secret").read_text() == "canary"


async def test_writing_over_a_hard_link_keeps_the_other_name(
    engine: OciEngine, spec: SandboxSpec, disk: DiskId
) -> None:
    await do(engine, spec, "echo old >one; ln one two")
    await write(engine, disk, "one", b"new")
    assert await read(engine, disk, "two") == b"old\n"
    await do(engine, spec, "ln two three")
    assert {member.type for member in (await archived(engine, disk)).values() if member.isfile()} == {b"0"}


async def test_files_with_impossible_times_are_listed(engine: OciEngine, spec: SandboxSpec, disk: DiskId) -> None:
    await do(engine, spec, "echo x >late; touch -d @1000000000000 late; echo x >early; touch -d @-1000000000000 early")
    assert await read(engine, disk, "late") == b"x\n"
    shown = {entry.name: entry.modified_at.year for entry in (await engine.files.list_files(disk, "", 0, 9)).entries}
    assert shown == {"late": 9999, "early": 1}
    await write(engine, disk, "late", b"new")
    await engine.files.delete_file(disk, "early", UNCONDITIONAL)
    assert await names(engine, disk) == ["late"]


async def test_files_can_be_deleted_on_a_full_disk(engine: OciEngine) -> None:
    disk = DiskId(new_id())
    await engine.disks.create_disk(disk, 8 << 20)
    spec = replace(await make_spec(engine, apps.SILENT), disk=disk)
    await engine.sandboxes.start(spec)
    await do(
        engine,
        spec,
        "mkdir d; echo x >d/x; dd if=/dev/urandom of=big bs=64k; i=0; "
        "while [ $i -lt 4000 ] && echo x >$i.txt; do i=$((i + 1)); done; true",
    )
    await engine.files.delete_file(disk, "big", UNCONDITIONAL)
    await engine.files.delete_file(disk, "d", UNCONDITIONAL, recursive=True)


# Races: the app puts a link where a folder or file was, as fast as it can

SWAP = """
import ctypes, os, sys
libc = ctypes.CDLL(None)
print("begun", flush=True)
while True:
    libc.renameat2(-100, b"swap", -100, b"link", 2)
"""


@pytest.fixture
async def swapping(engine: OciEngine, spec: SandboxSpec, outside: Path) -> AsyncIterator[None]:
    (outside / "file").write_text("canary")
    await do(engine, spec, f"mkdir swap; echo harmless >swap/file; ln -s {outside} link")
    async with engine.sandboxes.open_process(spec.id, ProcessSpec(("python3", "-c", SWAP))) as process:
        await begun(process)
        yield


@pytest.mark.usefixtures("swapping")
async def test_folder_swapped_for_a_link_is_not_followed(engine: OciEngine, disk: DiskId, outside: Path) -> None:
    done = refused = 0
    async with asyncio.timeout(ENGINE_TIMEOUT):
        # One in fifty finds the folder each of the three times.
        while done + refused < 100 or not done or not refused:
            name = f"swap/new/{done + refused}"
            try:
                assert await read(engine, disk, "swap/file") == b"harmless\n"
                await write(engine, disk, name, b"x")
                await engine.files.delete_file(disk, name, UNCONDITIONAL)
                done += 1
            except BuilderdError:
                refused += 1
    assert sorted(path.name for path in outside.iterdir()) == ["file", "secret"]
    assert (outside / "file").read_text() == "canary"


@pytest.mark.usefixtures("swapping")
async def test_swapped_link_is_deleted_and_archived_as_a_link(engine: OciEngine, disk: DiskId, outside: Path) -> None:
    whole = 0
    async with asyncio.timeout(ENGINE_TIMEOUT):
        while whole < 5:
            packed = bytearray()
            try:
                async for piece in engine.files.archive(disk):
                    packed += piece
                whole += 1
            except EngineUnavailable:  # a folder became a link after it was listed and before it was opened
                pass
            assert b"canary" not in packed
    for name in ("swap", "link"):
        try:
            await engine.files.delete_file(disk, name, UNCONDITIONAL, recursive=True)
        except NotFound:
            continue
    assert (outside / "file").read_text() == "canary"


# What is no file

SPECIALS = {
    "pipe": "mkfifo it",
    "socket": "python3 -c \"import socket; socket.socket(socket.AF_UNIX).bind('it')\"",
}


@pytest.mark.parametrize("make", SPECIALS.values(), ids=SPECIALS)
async def test_special_files_are_listed_and_never_opened(
    engine: OciEngine, spec: SandboxSpec, disk: DiskId, make: str
) -> None:
    await do(engine, spec, make)
    async with asyncio.timeout(ENGINE_TIMEOUT):
        with pytest.raises(ValidationFailed, match="not opened"):
            await read(engine, disk, "it")
        assert (await engine.files.list_files(disk, "", 0, 9)).entries[0].kind is FileKind.OTHER
        await archived(engine, disk)
        await write(engine, disk, "it", b"a file now")
        assert await read(engine, disk, "it") == b"a file now"


async def test_app_cannot_create_device_nodes(engine: OciEngine, spec: SandboxSpec) -> None:
    made = await execute(engine, spec.id, "mknod it b 8 0 || mknod it c 1 1", ENGINE_TIMEOUT, 1000)
    assert made.exit_code != 0


async def test_file_lease_of_an_app_does_not_block_the_api(engine: OciEngine, spec: SandboxSpec, disk: DiskId) -> None:
    lease = (
        "import fcntl, os, signal; signal.signal(signal.SIGIO, signal.SIG_IGN); "
        "f = os.open('it', os.O_RDWR | os.O_CREAT); fcntl.fcntl(f, fcntl.F_SETLEASE, fcntl.F_WRLCK); "
        "print('begun', flush=True); signal.pause()"
    )
    async with engine.sandboxes.open_process(spec.id, ProcessSpec(("python3", "-c", lease))) as process:
        await begun(process)
        async with asyncio.timeout(ENGINE_TIMEOUT):
            with pytest.raises(InvalidState, match="leased"):
                await read(engine, disk, "it")
            await write(engine, disk, "it", b"new")
            assert await read(engine, disk, "it") == b"new"


# Names, depths, numbers and sizes

NAMES = r"""
for name in $'line\nbreak' $'\xff\xfe' -rf --checkpoint-action=exec=sh '\..\x' "'" '$(reboot)' ' ' '~' '*' $'\e[2J'; do
  echo x >"./$name"
done"""


async def test_hostile_file_names_are_listed_and_archived_unchanged(
    engine: OciEngine, spec: SandboxSpec, disk: DiskId
) -> None:
    async with engine.sandboxes.open_process(spec.id, ProcessSpec(("bash", "-c", NAMES))) as process:
        assert await process.wait() == 0
    listed = await names(engine, disk)
    assert len(listed) >= 10
    assert "line\nbreak" in listed
    assert "\udcff\udcfe" in listed
    members = await archived(engine, disk)
    assert {f"./{name}" for name in listed} <= set(members)
    assert await read(engine, disk, "--checkpoint-action=exec=sh") == b"x\n"


DEEP = "python3 -c \"import os\nfor n in range(3000): os.mkdir('d' * 200); os.chdir('d' * 200)\""


async def test_tree_deeper_than_the_path_limit_is_deleted(engine: OciEngine, spec: SandboxSpec, disk: DiskId) -> None:
    await do(engine, spec, f"mkdir top; cd top; {DEEP}")
    await engine.files.delete_file(disk, "top", UNCONDITIONAL, recursive=True)
    assert await names(engine, disk) == []
    await emptied(engine, disk)


async def emptied(engine: OciEngine, disk: DiskId) -> None:
    """A large folder goes in turns, once its name is gone."""
    trash = engine._here.disks.trash(disk)
    async with asyncio.timeout(4 * ENGINE_TIMEOUT):
        while any(trash.iterdir()):
            await asyncio.sleep(0.1)


async def test_huge_folder_is_listed_in_pages_and_deleted(engine: OciEngine, spec: SandboxSpec, disk: DiskId) -> None:
    await do(engine, spec, "mkdir many; cd many; seq -w 30000 | xargs touch")
    page = await engine.files.list_files(disk, "many", 20_000, 3)
    assert ([entry.name for entry in page.entries], page.total) == (["20001", "20002", "20003"], 30_000)
    await engine.files.delete_file(disk, "many", UNCONDITIONAL, recursive=True)
    assert await names(engine, disk) == []


async def test_sparse_file_is_archived_by_its_content(engine: OciEngine, spec: SandboxSpec, disk: DiskId) -> None:
    await do(engine, spec, "truncate -s 1T hole")
    assert await read(engine, disk, "hole", 1 << 39, 10) == bytes(10)
    async with asyncio.timeout(ENGINE_TIMEOUT):
        assert sum([len(piece) async for piece in engine.files.archive(disk)]) < 1_000_000


async def test_aborted_archive_downloads_do_not_block_later_ones(
    engine: OciEngine, spec: SandboxSpec, disk: DiskId
) -> None:
    """Each is left with far more in its pipe than was taken of it."""
    await do(engine, spec, "head -c 30000000 /dev/zero >file")
    async with asyncio.timeout(ENGINE_TIMEOUT):
        for _ in range(2 * ARCHIVES):
            pieces = engine.files.archive(disk)
            await anext(pieces)
            await asyncio.sleep(0.1)
            await pieces.aclose()


async def test_download_of_a_shrinking_file_ends_early(engine: OciEngine, spec: SandboxSpec, disk: DiskId) -> None:
    await do(engine, spec, "head -c 4000000 /dev/zero >file")
    async with engine.files.open_file(disk, "file") as file:
        pieces = file.read(0, file.entry.size)
        size = len(await anext(pieces))
        await do(engine, spec, "truncate -s 1500000 file")
        size += sum([len(piece) async for piece in pieces])
    assert 1_000_000 < size <= 1_600_000


# Owners, modes and what is on its way


async def test_written_file_belongs_to_the_app_without_special_mode(
    engine: OciEngine, spec: SandboxSpec, disk: DiskId
) -> None:
    await do(engine, spec, "touch special; chmod 6755 special")
    await write(engine, disk, "special", b"x")
    await write(engine, disk, "made/deep/file", b"x")
    assert await do(engine, spec, "stat -c '%U %a' special made/deep made/deep/file") == "app 755\napp 755\napp 644\n"
    await do(engine, spec, "echo y >made/deep/file; rm -r made")


async def test_unreadable_file_is_readable_through_the_api(engine: OciEngine, spec: SandboxSpec, disk: DiskId) -> None:
    await do(engine, spec, "echo x >closed; chmod 0 closed; mkdir shut; echo y >shut/file; chmod 0 shut")
    assert await read(engine, disk, "closed") == b"x\n"
    assert "./shut/file" in await archived(engine, disk)
    await engine.files.delete_file(disk, "shut", UNCONDITIONAL, recursive=True)


async def test_app_does_not_see_incomplete_uploads(engine: OciEngine, spec: SandboxSpec, disk: DiskId) -> None:
    seen: list[str] = []

    async def content() -> AsyncIterator[bytes]:
        yield b"x" * (2 << 20)
        seen.append(await do(engine, spec, "find /app -xdev; ls -a /"))
        yield b"y"

    before = await do(engine, spec, "find /app -xdev; ls -a /")
    await engine.files.write_file(disk, "file", content(), condition=UNCONDITIONAL)
    assert seen == [before]


STAY = """
import os
os.makedirs("gone/deep")
os.chdir("gone/deep")
print("begun", flush=True)
while True:
    try:
        open(os.urandom(8).hex(), "w").close()
    except OSError:
        pass
"""


async def test_process_in_a_deleted_folder_cannot_restore_files(
    engine: OciEngine, spec: SandboxSpec, disk: DiskId
) -> None:
    async with engine.sandboxes.open_process(spec.id, ProcessSpec(("python3", "-c", STAY))) as process:
        await begun(process)
        async with asyncio.timeout(ENGINE_TIMEOUT):
            await engine.files.delete_file(disk, "gone", UNCONDITIONAL, recursive=True)
        assert await names(engine, disk) == []


GROW = """
import os
tips = []
for number in range(10):
    os.makedirs(f"gone/{number}")
    tips.append(os.open(f"gone/{number}", os.O_RDONLY))
print("begun", flush=True)
while True:
    for number, tip in enumerate(tips):
        try:
            os.mkdir("d", dir_fd=tip)
            tips[number] = os.open("d", os.O_RDONLY, dir_fd=tip)
            os.close(tip)
        except OSError:
            pass
"""


@pytest.fixture
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use one thread for the files of all disks."""
    monkeypatch.setattr(files, "THREADS", 1)


@pytest.mark.usefixtures("one_thread")
async def test_refilling_a_deleted_folder_does_not_block_the_api(
    engine: OciEngine, spec: SandboxSpec, disk: DiskId
) -> None:
    other = DiskId(new_id())
    await engine.disks.create_disk(other, 8 << 20)
    async with engine.sandboxes.open_process(spec.id, ProcessSpec(("python3", "-c", GROW))) as process:
        await begun(process)
        async with asyncio.timeout(ENGINE_TIMEOUT):
            deleting = asyncio.create_task(engine.files.delete_file(disk, "gone", UNCONDITIONAL, recursive=True))
            await asyncio.sleep(0.2)
            assert await names(engine, other) == []
            await deleting
        assert await names(engine, disk) == []
    await emptied(engine, disk)
