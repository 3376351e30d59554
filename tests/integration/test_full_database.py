"""The disk of the data directory is full: records are written there for a while, so that deletions free space."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from tests.contract.store.samples import TENANT, add, add_builder
from tests.small_disk import fill, small_disk
from tests.stores import open_store

from builderd.core.errors import StoreUnavailable
from builderd.database.sqlite import ROOM, keep_room
from builderd.database.unit_of_work import Store
from builderd.linux import atomic_files

pytestmark = pytest.mark.root

DISK = 256 << 20
#: Builders that are recorded on the full disk: each takes a few pages.
WRITES = 500


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path, DISK) as disk:
        yield disk


async def write_until_full(store: Store) -> int:
    """Return how many builders could be recorded, ``WRITES`` at most."""
    for number in range(WRITES):
        try:
            await add_builder(store)
        except StoreUnavailable:
            return number
    return WRITES


@pytest.mark.parametrize("has_room", [False, True], ids=["without room", "with room"])
async def test_room_lets_hundreds_of_records_be_written_to_a_full_disk(disk: Path, *, has_room: bool) -> None:
    url = f"sqlite:///{disk}/data/builderd.db"
    async with open_store(url) as store:
        await add(store, TENANT)
        if has_room:
            keep_room(url)
        fill(disk)
        written = await write_until_full(store)
    assert written == WRITES if has_room else written < WRITES // 2


async def test_room_is_allocated_once_and_changes_no_size(disk: Path) -> None:
    url, file = f"sqlite:///{disk}/data/builderd.db", disk / "data/builderd.db"
    async with open_store(url) as store:
        await add(store, TENANT)
        size = file.stat().st_size
        for _ in range(3):
            keep_room(url)
            assert file.stat().st_size == size
            assert ROOM <= file.stat().st_blocks * 512 - size < ROOM + (1 << 20)
        await add_builder(store)


def test_small_files_are_replaced_in_their_own_block_on_a_full_disk(disk: Path) -> None:
    record, large = disk / "record.json", disk / "large"
    atomic_files.replace(record, json.dumps("o" * 2000).encode())
    atomic_files.replace(large, b"o" * 5000)
    with fill(disk).open("ab", buffering=0) as filler, suppress(OSError):
        while True:  # blocks that were reserved for the files' metadata come free
            os.fsync(filler.fileno())
            filler.write(bytes(1024))
    inode = record.stat().st_ino
    for value in ("short", "l" * 2030):
        atomic_files.replace(record, json.dumps(value).encode(), durable=True)
        assert (json.loads(record.read_bytes()), record.stat().st_ino) == (value, inode)
    for path, content in ((record, 2049), (large, 5000), (disk / "new", 1)):
        with pytest.raises(OSError, match="No space"):
            atomic_files.replace(path, b"n" * content)
    # In place, a link would change a file of another name.
    (disk / "linked").hardlink_to(record)
    (disk / "link").symlink_to(record.name)
    for name in ("linked", "link"):
        with pytest.raises(OSError, match="No space"):
            atomic_files.replace(disk / name, b"n")
        (disk / name).unlink()
    assert (json.loads(record.read_bytes()), large.read_bytes()) == ("l" * 2030, b"o" * 5000)
    assert {one.name for one in disk.iterdir()} == {"record.json", "large", "lost+found", "filler"}
