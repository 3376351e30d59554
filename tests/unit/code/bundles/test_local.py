"""A bundle on the disk is whole or not there, whatever the program that unpacks says."""

from __future__ import annotations

import asyncio
import errno
import os
import zipfile
from pathlib import Path

import pytest

from builderd.code.bundles import local
from builderd.code.bundles.local import LocalBundles
from builderd.code.model import Alteration, ArchiveLimits, Bundle, BundleFile, bundle_hash, make_bundle
from builderd.core.errors import BuilderdError, MachineFault, NoCapacity, ValidationFailed

BUNDLE = make_bundle([BundleFile("main.py", b"print('hello')\n"), BundleFile("x.sh", b"true\n", executable=True)])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "bundles"


@pytest.fixture
async def file(folder: Path) -> Path:
    await LocalBundles(folder).put(BUNDLE)
    return folder / f"{BUNDLE.hash}.tar"


def flip(file: Path, at: int) -> None:
    content = bytearray(file.read_bytes())
    content[at] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("offset", [0, 100, 512, 520, 1536])
async def test_a_flipped_bit_is_noticed_and_putting_it_again_mends_it(folder: Path, file: Path, offset: int) -> None:
    flip(file, offset)
    bundles = LocalBundles(folder)
    with pytest.raises(KeyError):
        await bundles.get(BUNDLE.hash)
    await bundles.put(BUNDLE)
    assert await bundles.get(BUNDLE.hash) == BUNDLE


@pytest.mark.parametrize("size", [0, 100, 600])
async def test_a_cut_off_file_is_noticed(folder: Path, file: Path, size: int) -> None:
    os.truncate(file, size)
    with pytest.raises(KeyError):
        await LocalBundles(folder).get(BUNDLE.hash)


async def test_a_bundle_under_the_name_of_another_is_not_taken_for_it(folder: Path, file: Path) -> None:
    file.rename(folder / f"{'1' * 64}.tar")
    with pytest.raises(KeyError):
        await LocalBundles(folder).get("1" * 64)


async def test_a_write_that_fails_half_way_leaves_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        await LocalBundles(folder).put(BUNDLE)
    assert list(folder.iterdir()) == []


async def test_only_the_service_reads_it(folder: Path, file: Path) -> None:
    assert folder.stat().st_mode & 0o077 == 0
    assert file.stat().st_mode & 0o077 == 0


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the hash of each bundle that is hashed from its files."""
    hashes: list[str] = []

    def counted(files: tuple[BundleFile, ...]) -> str:
        hashes.append(bundle_hash(files))
        return hashes[-1]

    monkeypatch.setattr(local, "bundle_hash", counted)
    return hashes


CHANGED = Alteration((BundleFile("main.py", b"changed"),))


async def changed(bundles: LocalBundles) -> Bundle:
    return await bundles.alter(BUNDLE.hash, CHANGED, ArchiveLimits())


async def test_code_that_is_stored_already_is_not_hashed_again(folder: Path, file: Path, hashed: list[str]) -> None:
    bundles = LocalBundles(folder)
    made = await changed(bundles)
    hashed.clear()
    for _ in range(3):
        assert await changed(bundles) == made
        await bundles.get(made.hash)
        await bundles.put(made)
    assert hashed == []


async def test_code_that_was_damaged_is_not_taken_for_checked(folder: Path, file: Path, hashed: list[str]) -> None:
    bundles = LocalBundles(folder)
    made = await changed(bundles)
    flip(folder / f"{made.hash}.tar", 512)
    await changed(bundles)
    with pytest.raises(KeyError):
        await bundles.get(made.hash)


@pytest.mark.parametrize("files", [(), (BUNDLE.files[0],)])
async def test_code_in_which_nothing_changes_is_not_written_again(
    folder: Path, file: Path, monkeypatch: pytest.MonkeyPatch, files: tuple[BundleFile, ...]
) -> None:
    def written(*_: object) -> str:
        raise AssertionError("a tar was written")

    monkeypatch.setattr(local, "pack", written)
    bundles = LocalBundles(folder)
    assert await bundles.alter(BUNDLE.hash, Alteration(files, (), BUNDLE.hash), ArchiveLimits()) == BUNDLE
    with pytest.raises(ValidationFailed):
        await bundles.alter(BUNDLE.hash, Alteration(files, (), "0" * 64), ArchiveLimits())


async def unpack_by(program: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: int) -> str:
    (tmp_path / "taken_over.py").write_text(program)
    monkeypatch.setattr(local, "_MODULE", "taken_over")
    monkeypatch.setattr(local, "_SOURCE", str(tmp_path))
    with (tmp_path / "in").open("w+b") as archive, (tmp_path / "out").open("w+b") as out:
        async with asyncio.timeout(60):
            return await local.unpack(archive, out, ArchiveLimits(seconds=seconds))


async def test_a_report_in_pieces_is_one_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = """
import sys, time
for piece in ('{"ha', 'sh": "ab', 'c"}'):
    sys.stderr.write(piece)
    sys.stderr.flush()
    time.sleep(0.1)
"""
    assert await unpack_by(program, tmp_path, monkeypatch, seconds=10) == "abc"


async def test_report_over_the_limit_is_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = "import sys\nsys.stderr.write('x' * 5_000_000)\n"
    with pytest.raises(ValidationFailed, match="cannot be read"):
        await unpack_by(program, tmp_path, monkeypatch, seconds=10)


async def test_a_program_that_never_stops_talking_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "_WALL_TIME_FACTOR", 1)
    program = "import sys, time\nwhile True:\n    sys.stderr.write('x' * 1_000)\n    time.sleep(0.01)\n"
    with pytest.raises(ValidationFailed, match="takes too long"):
        await unpack_by(program, tmp_path, monkeypatch, seconds=1)


@pytest.mark.parametrize("room", range(100_000, 116_000, 3_000))
async def test_full_room_is_reported_wherever_the_last_write_ends(tmp_path: Path, room: int) -> None:
    """Include ends within a buffer of the interpreter, which tells of the rest of it when it closes the file."""
    with zipfile.ZipFile(tmp_path / "in", "w", zipfile.ZIP_DEFLATED) as made:
        made.writestr("main.py", bytes(1_000_000))
    with (
        (tmp_path / "in").open("rb") as archive,
        (tmp_path / "out").open("w+b") as out,
        pytest.raises(NoCapacity, match="above the floor"),
    ):
        await local.unpack(archive, out, ArchiveLimits(room_bytes=room))


async def test_killed_unpacking_process_is_a_machine_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n"
    with pytest.raises(MachineFault, match="unpacks archives was killed") as caught:
        await unpack_by(program, tmp_path, monkeypatch, seconds=10)
    assert caught.value.retry_after


@pytest.mark.parametrize(
    ("number", "expected"),
    [(errno.ENOSPC, MachineFault), (errno.EIO, MachineFault), (0, NoCapacity), ('"x"', NoCapacity)],
)
async def test_unwritable_disk_is_not_blamed_on_the_archive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: object, expected: type[BuilderdError]
) -> None:
    program = f"""import sys\nsys.stderr.write('{{"failed": "its words", "errno": {number}}}')\n"""
    with pytest.raises(expected):
        await unpack_by(program, tmp_path, monkeypatch, seconds=10)
