"""The host's disk fills up below the store: apps stop writing before a write fails, and everything else goes on."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from tests.integration.oci.stores import is_let_go, new_store, quiet
from tests.integration.oci.test_disks import MB, fill, soon
from tests.small_disk import fill as fill_host
from tests.small_disk import small_disk

from builderd.core.errors import EngineUnavailable
from builderd.core.ids import DiskId
from builderd.engine.oci.provider import check_store
from builderd.engine.oci.storage import backing, space_reservations
from builderd.engine.oci.storage.disks import Disks
from builderd.engine.oci.storage.space_reservations import StorageDevice
from builderd.engine.oci.storage.store import Store
from builderd.engine.port import StoreOptions

pytestmark = pytest.mark.root

HOST, STORE = 1_500 * MB, 1_200 * MB
OPTIONS = StoreOptions(size_bytes=STORE, floor_bytes=200 * MB)
ONE, TWO = DiskId("one"), DiskId("two")


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A small file system, which no sandbox of another service keeps a copy of."""
    monkeypatch.setattr(backing, "SMALLEST", STORE // 2)
    monkeypatch.setattr(space_reservations, "RESERVE", 100 * MB)
    monkeypatch.setattr("builderd.engine.oci.storage.disks.SCRATCH_BYTES", 16 * MB)
    with small_disk(tmp_path, HOST) as disk:
        yield disk


@pytest.fixture
def store(host: Path) -> Iterator[Store]:
    store = new_store(host, OPTIONS)
    store.open(quiet)
    yield store
    store.close()
    assert is_let_go(host / "data/store.img")


def test_apps_stop_writing_in_time_and_disks_can_be_emptied_deleted_and_made(host: Path, store: Store) -> None:
    disks = Disks(store)
    disks.open()
    disks.create(ONE, 100 * MB)
    disks.create(TWO, 100 * MB)
    fill(disks.app(ONE) / "data", 50 * MB)
    store.start_watch()
    assert store.failure_reason() is None

    fill_host(host, 100 * MB)
    assert soon(lambda: "Free space on the host" in (store.failure_reason() or ""))
    checked = check_store(StorageDevice(store.root, host / "data/store.img", OPTIONS.floor_bytes))
    assert [check.found for check in checked] == [False, True], "doctor says so"
    fill_host(host)
    assert fill(disks.app(TWO) / "data", 50 * MB) == 0
    (disks.app(ONE) / "data").unlink()
    for number in range(5):
        (store.root / f"the service's own {number}").write_text("kept")
        subprocess.run(["sync", "--file-system", store.root], check=True)
    disks.delete(ONE)
    subprocess.run(["sync", "--file-system", store.root], check=True)
    assert not os.statvfs(store.root).f_flag & os.ST_RDONLY

    (host / "filler").unlink()
    assert soon(lambda: store.failure_reason() is None)
    assert fill(disks.app(TWO) / "data", 50 * MB) == 50 * MB
    disks.close()


def test_read_only_store_is_remounted_when_unused(host: Path, store: Store) -> None:
    disks = Disks(store)
    disks.open()
    disks.create(ONE, 500 * MB)
    disks.write_out(ONE)
    fill_host(host)
    _fail_to_write(store, disks)
    store.start_watch()
    assert "is read-only" in (store.failure_reason() or "")
    (host / "filler").unlink()

    again = new_store(host, OPTIONS)
    with (disks.app(ONE) / "opened").open("rb"):
        store.release()
        with pytest.raises(EngineUnavailable, match=r"is read-only.*builderd down"):
            again.open(quiet)
    again.open(quiet)
    assert fill(again.disks / "one/app/data", MB) == MB
    again.close()


def _fail_to_write(store: Store, disks: Disks) -> None:
    """Fail as a write without a watch does."""
    (disks.app(ONE) / "opened").touch()
    for number in range(100_000):
        with suppress(OSError):
            (disks.app(ONE) / f"file{number}").write_bytes(os.urandom(20_000))
        if number % 500 == 0:
            subprocess.run(["sync", "--file-system", store.root], check=False, capture_output=True)
            if os.statvfs(store.root).f_flag & os.ST_RDONLY:
                return
    raise AssertionError("it never became read-only")
