"""The store: when it is called full, its limit above all limits, and the mounts of all processes."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from builderd.core.errors import EngineUnavailable, NoCapacity
from builderd.engine.oci.storage import backing
from builderd.engine.oci.storage.backing import mounted_roots
from builderd.engine.oci.storage.space_reservations import SpaceReservations, StoreWatch
from builderd.engine.oci.storage.store import Store, store_full
from builderd.engine.port import StoreOptions


def _failed_store(folder: Path, *, full: bool) -> Store:
    """Return a store that its watch calls failed, with no room to write."""
    store: Any = Store(folder, folder / "store", StoreOptions(), "0")
    store._watch = SimpleNamespace(failure_reason=lambda: "the reason", is_full=lambda: full)
    store._reservations = SimpleNamespace(writable=lambda: 0)
    store._quota = SimpleNamespace(total=0, limit_of=lambda _: 0, used=lambda _: 0)
    failed: Store = store
    return failed


@pytest.mark.parametrize(("full", "expected"), [(True, NoCapacity), (False, EngineUnavailable)])
def test_read_only_store_without_room_is_not_called_full(tmp_path: Path, full: bool, expected: type) -> None:
    store = _failed_store(tmp_path, full=full)
    readiness = store.failure()
    assert readiness is not None
    assert readiness.full is full
    assert type(store_full(store)) is expected


MB = 1 << 20
CULPRIT, CULPRIT_SCRATCH, NEIGHBOUR, NEIGHBOUR_SCRATCH, TOTAL = range(1, 6)
#: Seen on Linux 6.12 and 6.18 in a store of 512 MB: the culprit has filled all of its own with metadata, the neighbour
#: its disk; the neighbour's scratch of 32 MB is left.
USED = {CULPRIT: 221 * MB, CULPRIT_SCRATCH: 32 * MB, NEIGHBOUR: 70 * MB, NEIGHBOUR_SCRATCH: 0}
USED[TOTAL] = sum(USED.values())


@pytest.mark.parametrize(("writable", "limit"), [(41 * MB, None), (31 * MB, 354 * MB)])
def test_writes_are_limited_only_when_what_is_left_of_the_promises_does_not_fit(
    writable: int, limit: int | None
) -> None:
    limits: list[int | None] = []
    quota = SimpleNamespace(
        used=USED.__getitem__,
        total=TOTAL,
        limit_of=lambda _: 0,
        limit_total=limits.append,
    )
    device = SimpleNamespace(writable=lambda: writable, is_read_only=lambda: False, image=None)
    reservations = SpaceReservations(cast("Any", device), cast("Any", quota), overcommit=1)
    for name, size, group, scratch in (
        ("culprit", 220 * MB, CULPRIT, CULPRIT_SCRATCH),
        ("neighbour", 70 * MB, NEIGHBOUR, NEIGHBOUR_SCRATCH),
    ):
        reservations.adopt(name, size + 32 * MB, group)
        reservations.count_scratch(name, scratch)
    StoreWatch(cast("Any", device), cast("Any", quota), reservations).check()
    assert limits == [limit]


LINE = "29 1 0:25 {root} /mnt rw,relatime shared:1 - btrfs /dev/loop0 rw\n"


def process(proc: Path, number: str, namespace: str, *roots: str) -> None:
    folder = proc / number
    (folder / "ns").mkdir(parents=True)
    (folder / "ns/mnt").symlink_to(f"mnt:[{namespace}]")
    (folder / "mountinfo").write_text("".join(LINE.format(root=root) for root in roots))


def test_the_mounts_of_every_namespace_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    process(tmp_path, "1", "10", "/", "/a")
    process(tmp_path, "2", "10", "/not-looked-at-again")
    process(tmp_path, "3", "11", "/b")
    process(tmp_path, "self", "12", "/no-process")
    (tmp_path / "4").mkdir()
    monkeypatch.setattr(backing, "PROC", tmp_path)
    assert mounted_roots() <= {"/", "/a", "/b", "/not-looked-at-again"}
    assert "/b" in mounted_roots()
    assert len(mounted_roots() & {"/a", "/not-looked-at-again"}) == 1


def test_our_own_root_is_among_them() -> None:
    assert "/" in mounted_roots()
