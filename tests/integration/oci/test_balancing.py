"""Metadata is kept once, also in stores from before, and what is deleted is there for whatever is written next."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tests.integration.oci.stores import new_store, opened
from tests.integration.oci.test_disks import MB, fill, soon

from builderd.adapters.engines.oci.storage import backing, storage_device
from builderd.adapters.engines.oci.storage.disks import Disks
from builderd.adapters.engines.oci.storage.space_info import read_space_info
from builderd.adapters.engines.oci.storage.store import Store
from builderd.domain.ids import DiskId
from builderd.domain.resources import GB
from builderd.ports.engine import StoreOptions

pytestmark = pytest.mark.root

STORE = 512 * MB
OPTIONS = StoreOptions(size_bytes=STORE, floor_bytes=GB)
ONE, TWO = DiskId("one"), DiskId("two")


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backing, "SMALLEST", STORE)
    monkeypatch.setattr(backing, "CONVERT_BYTES", 200 * MB)
    monkeypatch.setattr(storage_device, "RESERVE", 60 * MB)
    monkeypatch.setattr("builderd.adapters.engines.oci.storage.disks.SCRATCH_BYTES", 16 * MB)


@pytest.fixture
def old_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """Make a store with two copies of metadata, as mkfs.btrfs makes them by itself."""
    monkeypatch.setattr(backing, "MKFS", ("mkfs.btrfs", "--quiet", "--label", backing.LABEL, "--metadata", "dup"))
    with opened(new_store(tmp_path, OPTIONS)) as store:
        yield store


def copies(store: Store) -> int:
    return read_space_info(store.root).metadata.copies


def write_attributes(folder: Path, size: int, each: int = 400) -> int:
    """Metadata of this size, in files of so many attributes; the error of the kernel, 0 for none."""
    value = os.urandom(16_000)
    try:
        for number in range(size // len(value)):
            file = folder / str(number // each)
            if number % each == 0:
                file.touch()
            os.setxattr(file, f"user.{number % each}", value)
    except OSError as error:
        return error.errno or 0
    return 0


def test_metadata_in_two_copies_counts_twice_until_it_is_converted(old_store: Store) -> None:
    assert copies(old_store) == 2
    before = old_store.reservations.capacity()
    (old_store.root / "kept").write_text("yes")
    old_store.start_watch()
    assert soon(lambda: copies(old_store) == 1)
    assert old_store.reservations.capacity() > before * 1.6
    assert (old_store.root / "kept").read_text() == "yes"


@pytest.mark.slow
def test_a_full_store_of_two_copies_is_converted_and_its_disks_can_be_deleted(old_store: Store) -> None:
    subprocess.run(["mount", "-o", "remount,commit=1", old_store.root], check=True)
    disks = Disks(old_store)
    disks.open()
    disks.create(ONE, 20 * MB)
    old_store.quota.limit(old_store.disks / ONE, 400 * MB)  # as it was promised before
    assert write_attributes(disks.app(ONE), 400 * MB) == errno.ENOSPC
    old_store.start_watch()
    assert soon(lambda: copies(old_store) == 1), "with some room that it was given for this"
    disks.delete(ONE)
    assert soon(lambda: read_space_info(old_store.root).metadata.used < 20 * MB)
    disks.close()


def test_a_disk_is_deleted_from_a_store_without_a_free_byte(old_store: Store) -> None:
    subprocess.run(["mount", "-o", "remount,commit=1", old_store.root], check=True)
    disks = Disks(old_store)
    disks.open()
    disks.create(ONE, 20 * MB)
    old_store.quota.limit(old_store.disks / ONE, 400 * MB)
    assert write_attributes(disks.app(ONE), 400 * MB) == errno.ENOSPC
    disks.delete(ONE)
    assert soon(lambda: read_space_info(old_store.root).metadata.used < 20 * MB)
    disks.close()


def test_free_metadata_space_becomes_space_for_data(tmp_path: Path) -> None:
    with opened(new_store(tmp_path, replace(OPTIONS, size_bytes=STORE))) as store:
        subprocess.run(["mount", "-o", "remount,commit=1", store.root], check=True)
        disks = Disks(store)
        disks.open()
        disks.create(ONE, 190 * MB)
        disks.create(TWO, 190 * MB)
        assert write_attributes(disks.app(ONE), 180 * MB) == 0
        for number in range(1, 40):
            if number % 4:  # what stays holds its chunk
                (disks.app(ONE) / str(number)).unlink(missing_ok=True)
        subprocess.run(["sync", "--file-system", store.root], check=True)
        store.start_watch()
        assert fill(disks.app(ONE) / "data", 120 * MB) > 100 * MB
        # A write that is faster than the balancer gets "disk quota exceeded", and goes on when it is tried again.
        soon(lambda: fill_on(disks.app(TWO), 190 * MB) > 180 * MB)
        assert used(disks.app(TWO)) > 180 * MB
        disks.close()


def fill_on(folder: Path, size: int) -> int:
    """Write one more file, up to this size of all; the size of all."""
    fill(folder / f"data{len(list(folder.iterdir()))}", size - used(folder))
    return used(folder)


def used(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())
