"""Metadata counts as what it takes: an app that writes nothing else fills its own disk, and no neighbour's.

The store lies below every sandbox alike, so this is true for either isolation.
"""

from __future__ import annotations

import errno
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.integration.oci.stores import open_store
from tests.integration.oci.test_disks import MB, fill, soon

from builderd.core.ids import DiskId
from builderd.core.resources import GB
from builderd.engine.oci.storage import backing, space_reservations
from builderd.engine.oci.storage.backing import free_bytes
from builderd.engine.oci.storage.disks import Disks
from builderd.engine.oci.storage.space_reservations import read_chunks
from builderd.engine.oci.storage.store import Store
from builderd.engine.port import StoreOptions

pytestmark = pytest.mark.root

CULPRIT, NEIGHBOUR = DiskId("culprit"), DiskId("neighbour")
#: A small store, promised to two disks: twice what the culprit may write would be all of it.
STORE, RESERVE, SCRATCH, SIZE, NEIGHBOUR_SIZE = 540 * MB, 80 * MB, 32 * MB, 220 * MB, 70 * MB
OPTIONS = StoreOptions(size_bytes=STORE, floor_bytes=GB)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    monkeypatch.setattr(backing, "SMALLEST", STORE)
    monkeypatch.setattr(space_reservations, "RESERVE", RESERVE)
    monkeypatch.setattr("builderd.engine.oci.storage.disks.SCRATCH_BYTES", SCRATCH)
    with open_store(tmp_path, OPTIONS) as store:
        # The kernel gives space back at each commit: every second instead of every 30.
        subprocess.run(["mount", "-o", "remount,commit=1", store.root], check=True)
        yield store


@pytest.fixture
def disks(store: Store) -> Iterator[Disks]:
    disks = Disks(store)
    disks.open()
    disks.create(CULPRIT, SIZE)
    disks.create(NEIGHBOUR, NEIGHBOUR_SIZE)
    store.start_watch()
    yield disks
    disks.close()


def until_refused(write: Callable[[int], None]) -> int:
    """Call it with 0, 1, 2, … until the disk is full; the error that says so."""
    for number in range(10_000_000):
        try:
            write(number)
        except OSError as error:
            return error.errno or 0
    raise AssertionError("it is never full")


def write_attributes(folder: Path) -> int:
    """Extended attributes of 16,000 bytes, 1,000 on each file."""
    value = os.urandom(16_000)

    def write(number: int) -> None:
        file = folder / f"attributes{number // 1_000}"
        if number % 1_000 == 0:
            file.touch()
        os.setxattr(file, f"user.{number % 1_000}", value)

    return until_refused(write)


def write_small_files(folder: Path) -> int:
    """Files of 2,000 bytes, which btrfs keeps inside of its metadata."""
    content = os.urandom(2_000)
    return until_refused(lambda number: _ignore((folder / str(number)).write_bytes(content)))


def _ignore(result: object) -> None:
    """Do nothing, as a callback."""


def sync(store: Store) -> None:
    subprocess.run(["sync", "--file-system", store.root], check=True)


def test_neighbour_can_use_its_full_disk_beside_a_metadata_filler(store: Store, disks: Disks) -> None:
    assert write_attributes(disks.app(CULPRIT)) == errno.EDQUOT
    assert write_attributes(disks.scratch(CULPRIT) / "upper") == errno.EDQUOT
    sync(store)
    assert read_chunks(store.root, "metadata").used < (SIZE + SCRATCH) * 1.05

    assert fill(disks.app(NEIGHBOUR) / "data", NEIGHBOUR_SIZE) > NEIGHBOUR_SIZE * 0.9
    assert fill(disks.scratch(NEIGHBOUR) / "upper/data", SCRATCH) > SCRATCH * 0.9
    sync(store)

    disks.scratch(NEIGHBOUR)  # as at a restart
    before, begun = free_bytes(store.root), time.monotonic()
    disks.delete(CULPRIT)
    assert time.monotonic() - begun < 60
    assert soon(lambda: read_chunks(store.root, "metadata").used < 50 * MB), "its space comes back"
    assert soon(lambda: free_bytes(store.root) >= before + SIZE * 0.8)
    disks.create(DiskId("next"), 10 * MB)


@pytest.mark.slow
def test_small_files_count_by_their_size_on_disk(store: Store, disks: Disks) -> None:
    disks.create(NEIGHBOUR, 10 * MB)
    assert write_small_files(disks.app(NEIGHBOUR)) == errno.EDQUOT
    sync(store)
    metadata = read_chunks(store.root, "metadata")
    assert metadata.copies == 1
    assert metadata.used < 15 * MB


def test_a_disk_is_deleted_from_a_store_without_a_free_byte(store: Store) -> None:
    disks = Disks(store)
    disks.open()
    disks.create(CULPRIT, 20 * MB)
    store.quota.limit(store.disks / CULPRIT, 2 * STORE)
    assert write_attributes(disks.app(CULPRIT)) == errno.ENOSPC
    disks.delete(CULPRIT)
    assert soon(lambda: read_chunks(store.root, "metadata").used < 20 * MB)
    disks.close()
