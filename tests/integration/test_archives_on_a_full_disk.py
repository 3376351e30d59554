"""Archives that are small until they are unpacked leave the floor of the data directory's disk free."""

from __future__ import annotations

import asyncio
import zipfile
from pathlib import Path

import pytest
from tests.small_disk import fill, free_bytes, small_disk

from builderd.code.bundles.local import LocalBundles
from builderd.code.model import ArchiveLimits
from builderd.core.errors import NoCapacity

pytestmark = pytest.mark.root

MB = 1_000_000
DISK, FLOOR, ABOVE, BOMB = 128 * MB, 50 * MB, 20 * MB, 40 * MB


def archive(path: Path, size: int) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as out:
        out.writestr("main.py", bytes(size))
    return path


async def unpack(bundles: LocalBundles, path: Path) -> str:
    """Return the hash alone: the bundle keeps its file open, on the disk that is unmounted."""
    with path.open("rb") as file:
        return (await bundles.unpack(file, ArchiveLimits())).hash


async def least_free(disk: Path, least: list[int]) -> None:
    while True:
        least.append(free_bytes(disk))
        await asyncio.sleep(0.002)


async def test_archives_that_unpack_to_more_than_is_free_leave_the_floor(tmp_path: Path) -> None:
    bomb, small = archive(tmp_path / "bomb.zip", BOMB), archive(tmp_path / "small.zip", 100_000)
    with small_disk(tmp_path, DISK) as disk:
        bundles, least = LocalBundles(disk / "bundles", FLOOR), list[int]()
        fill(disk, FLOOR + ABOVE)
        watch = asyncio.create_task(least_free(disk, least))
        outcomes = await asyncio.gather(
            *(unpack(bundles, path) for path in (bomb, bomb, small, bomb)), return_exceptions=True
        )
        watch.cancel()
        for number in (0, 1, 3):
            assert isinstance(outcomes[number], NoCapacity), outcomes[number]
            assert "MB are left for it above the floor" in str(outcomes[number])
        assert isinstance(outcomes[2], str), "a neighbour's finds room"
        assert min(least) > FLOOR - 100_000, "and less than a tenth of a MB for the file system"
        # What was not stored takes nothing.
        assert free_bytes(disk) > FLOOR + ABOVE - MB


async def test_archive_is_refused_where_nothing_is_free_above_the_floor(tmp_path: Path) -> None:
    with small_disk(tmp_path, DISK) as disk:
        fill(disk, FLOOR - MB)
        with pytest.raises(NoCapacity, match="There is no room to unpack"):
            await unpack(LocalBundles(disk / "bundles", FLOOR), archive(tmp_path / "small.zip", 100))
