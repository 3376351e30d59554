"""The program that unpacks is in a hostile archive's hands: whatever it says, the service gets on."""

from __future__ import annotations

import asyncio
import errno
import zipfile
from pathlib import Path

import pytest

from builderd.adapters.bundles import local
from builderd.domain.bundles import ArchiveLimits
from builderd.domain.errors import BuilderdError, MachineFault, NoCapacity, ValidationFailed


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
    program = "import sys\nwhile True:\n    sys.stderr.write('x' * 100_000)\n"
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
