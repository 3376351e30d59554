"""One tenant writes as fast as it can on ten disks of a store that promises more than it has: no other is harmed."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.integration.oci.stores import open_store
from tests.integration.oci.test_disks import MB, fill, soon

from builderd.core.errors import NoCapacity
from builderd.core.ids import DiskId
from builderd.core.resources import GB
from builderd.engine.oci.storage import backing, space_reservations
from builderd.engine.oci.storage.disks import Disks
from builderd.engine.oci.storage.store import Store
from builderd.engine.port import StoreOptions

pytestmark = pytest.mark.root

STORE = 1100 * MB
OPTIONS = StoreOptions(size_bytes=STORE, floor_bytes=GB, overcommit=100)
ATTACKED = [DiskId(f"attacker{number}") for number in range(10)]
#: Three of tenants of their own, and one that belongs to the attacker, as a well-behaved app of the same tenant.
QUIET = {DiskId("one"): "ana", DiskId("two"): "ben", DiskId("three"): "cas", DiskId("own"): "attacker"}


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    monkeypatch.setattr(backing, "SMALLEST", STORE)
    monkeypatch.setattr(space_reservations, "RESERVE", 100 * MB)
    with open_store(tmp_path, OPTIONS) as store:
        yield store


@pytest.fixture
def disks(store: Store) -> Iterator[Disks]:
    disks = Disks(store)
    disks.open()
    for disk, tenant in {**QUIET, **dict.fromkeys(ATTACKED, "attacker")}.items():
        disks.create(disk, 3 * GB)
        disks.scratch(disk, tenant)
    store.start_watch()
    yield disks
    disks.close()


class Writers:
    """Threads that write until they are stopped; ``refused`` are the errors of each."""

    def __init__(self) -> None:
        self._over = threading.Event()
        self._threads: list[threading.Thread] = []
        self.refused: dict[str, list[int]] = {}

    def begin(self, file: Path, piece: int, pause: float, *, allocate: bool = False) -> None:
        refused = self.refused[str(file)] = []

        def write() -> None:
            descriptor, end = os.open(file, os.O_CREAT | os.O_WRONLY), 0
            while not self._over.wait(pause):
                try:
                    if allocate:
                        os.posix_fallocate(descriptor, end, piece)
                        end += piece
                    else:
                        os.write(descriptor, b"x" * piece)
                except OSError as error:
                    refused.append(error.errno or 0)
                    self._over.wait(0.01)
            os.close(descriptor)

        self._threads.append(threading.Thread(target=write))
        self._threads[-1].start()

    def end(self) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()


@pytest.mark.parametrize("allocate", [False, True], ids=["written", "allocated"])
def test_ten_growing_disks_leave_room_for_all_others(store: Store, disks: Disks, allocate: bool) -> None:
    writers = Writers()
    for disk in QUIET:
        writers.begin(disks.app(disk) / "log", 1024, 0.05)
    for disk in ATTACKED:
        writers.begin(disks.app(disk) / "data", 4 * MB, 0, allocate=allocate)
    time.sleep(6)
    # The disk of a busy machine may be slow to take what fills their share.
    stopped = soon(lambda: all(writers.refused[str(disks.app(disk) / "data")] for disk in ATTACKED))
    # The attacker's own other app may meet the limit of their tenant until the next look, and goes on.
    own = disks.app(DiskId("own")) / "log"
    written = own.stat().st_size
    goes_on = soon(lambda: own.stat().st_size > written)
    writers.end()
    assert stopped, writers.refused
    assert goes_on
    refused = {Path(file).parts[-3]: set(errors) for file, errors in writers.refused.items()}
    others = [disk for disk, tenant in QUIET.items() if tenant != "attacker"]
    assert [refused[disk] for disk in others] == [set()] * len(others)
    assert all(refused[disk] == {errno.EDQUOT} for disk in ATTACKED), refused
    # Some of it is left, however quick the writers are: the next app's write has a place.
    assert store.reservations.writable() > 0
    assert all((disks.app(disk) / "log").stat().st_size > 60 * 1024 for disk in QUIET)
    with pytest.raises(NoCapacity, match=r"nearly full.*store\.size"):
        disks.reserve(DiskId("new"), GB)
    assert disks.is_stopped_by_store(ATTACKED[0])

    # The limits are kept by the store: the next service goes on with them, until there is room again.
    attacker = disks.app(ATTACKED[0]) / "data"
    with attacker.open("ab") as file, pytest.raises(OSError, match="quota"):
        file.write(b"x" * 40 * MB)
    for disk in ATTACKED[1:]:
        disks.delete(disk)
    assert soon(lambda: fill(disks.app(ATTACKED[0]) / "more", 40 * MB) == 40 * MB)
    disks.reserve(DiskId("new"), GB)
