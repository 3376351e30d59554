"""A disk keeps what it is given, takes no more than its limit, and is copied and deleted whole."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.integration.oci.stores import new_store, open_store, opened

from builderd.code.model import BundleFile, make_bundle
from builderd.core.errors import NoCapacity, NotFound
from builderd.core.ids import DiskId
from builderd.core.resources import GB
from builderd.engine.oci.storage import tree
from builderd.engine.oci.storage.disks import APP_OWNER, DISK_UID, SCRATCH_BYTES, Disks
from builderd.engine.oci.storage.store import Store
from builderd.engine.oci.storage.subvolumes import create_subvolume, folder, is_subvolume
from builderd.engine.oci.storage.tree import HOME_IN_BACKUP as HOME

pytestmark = pytest.mark.root

MB = 1 << 20
ONE, TWO = DiskId("one"), DiskId("two")
BUNDLE = make_bundle([BundleFile("main.py", b"print(1)\n"), BundleFile("a/run.sh", b"true\n", executable=True)])


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with open_store(tmp_path_factory.mktemp("disks")) as store:
        # The kernel gives space back at each commit: every second instead of every 30.
        subprocess.run(["mount", "-o", "remount,commit=1", store.root], check=True)
        yield store


@pytest.fixture
def disks(store: Store) -> Iterator[Disks]:
    disks = Disks(store)
    disks.open()
    yield disks
    disks.close()
    for path in store.disks.iterdir():
        disks.delete(DiskId(path.name))


def fill(path: Path, size: int) -> int:
    """Write incompressible bytes up to size and sync; how many were taken."""
    block, written = os.urandom(MB), 0
    try:
        file = path.open("wb", buffering=0)
    except OSError as error:
        if error.errno == errno.EDQUOT:
            return 0
        raise
    with file:
        while written < size:
            try:
                written += file.write(block)
                os.fsync(file.fileno())
            except OSError as error:
                if error.errno != errno.EDQUOT:
                    raise
                break
    return written


def soon(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 60
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.1)
    return condition()


def test_a_new_disk_is_empty_and_the_apps_own(disks: Disks) -> None:
    disks.create(ONE, GB)
    app = disks.app(ONE)
    assert list(app.iterdir()) == []
    assert (app.stat().st_uid, app.stat().st_gid) == (APP_OWNER, APP_OWNER)
    assert APP_OWNER == DISK_UID + 1000
    report = disks.report(ONE)
    assert report
    assert report.bundle_hash is None


def test_creating_it_again_keeps_what_is_on_it(disks: Disks) -> None:
    disks.create(ONE, GB)
    (disks.app(ONE) / "data").write_text("kept")
    disks.create(ONE, GB)
    assert (disks.app(ONE) / "data").read_text() == "kept"


def test_a_new_limit_is_in_force_at_once(disks: Disks) -> None:
    disks.create(ONE, 10 * MB)
    disks.create(ONE, 30 * MB)
    assert fill(disks.app(ONE) / "data", 25 * MB) > 10 * MB
    disks.create(ONE, 10 * MB)
    assert fill(disks.app(ONE) / "more", 5 * MB) == 0


def test_scratch_is_new_each_time_and_has_a_limit_of_its_own(disks: Disks) -> None:
    disks.create(ONE, 20 * MB)
    taken = fill(disks.scratch(ONE) / "upper/data", SCRATCH_BYTES + 20 * MB)
    assert SCRATCH_BYTES - 10 * MB < taken <= SCRATCH_BYTES
    assert fill(disks.app(ONE) / "data", 12 * MB) == 12 * MB
    scratch = disks.scratch(ONE)
    assert sorted(path.name for path in scratch.iterdir()) == ["upper", "work"]
    assert list((scratch / "upper").iterdir()) == []


def test_scratch_that_goes_with_its_disk_keeps_no_other_from_being_collected(
    disks: Disks, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [DiskId(f"disk-{number}") for number in range(4)]
    for name in names:
        disks.create(name, 20 * MB)
        disks.scratch(name)
    delete, deleted = store.quota.delete, []

    def delete_two(path: Path) -> None:
        delete(path)
        deleted.append(path)
        if len(deleted) == 1:
            other = next(name for name in names if (store.scratch / name).exists())
            disks.delete(other)

    monkeypatch.setattr(store.quota, "delete", delete_two)
    assert disks.collect_scratch((), 0) == 3
    assert list(store.scratch.iterdir()) == []


def test_scratch_of_a_hostile_shape_goes_in_one_step(disks: Disks) -> None:
    disks.create(ONE, 100 * MB)
    inside = os.open(disks.scratch(ONE) / "upper", os.O_RDONLY)
    for _ in range(3000):
        os.mkdir("d" * 200, 0o000, dir_fd=inside)
        deeper = os.open("d" * 200, os.O_RDONLY, dir_fd=inside)
        os.close(inside)
        inside = deeper
    os.close(inside)
    assert list((disks.scratch(ONE) / "upper").iterdir()) == []


def test_an_app_itself_can_make_such_a_subvolume_and_gains_nothing(disks: Disks) -> None:
    """The attack as it would be made: by an unprivileged process in a folder that it may write."""
    disks.create(ONE, 20 * MB)
    with folder(disks.app(ONE)) as app:
        attack = f"import fcntl; fcntl.ioctl({app}, 0x50009418, bytearray(56) + b'mine'.ljust(4040, bytes(1)))"
        attacker = ["/usr/bin/python3", "-c", attack]
        subprocess.run(attacker, pass_fds=[app], user=APP_OWNER, group=APP_OWNER, extra_groups=(), cwd="/", check=True)
    assert is_subvolume(disks.app(ONE) / "mine")
    assert fill(disks.app(ONE) / "mine/data", 40 * MB) <= 20 * MB


def test_a_disk_with_subvolumes_in_it_is_deleted_whole(disks: Disks, store: Store) -> None:
    disks.create(ONE, 50 * MB)
    path = disks.app(ONE)
    for n in range(40):
        create_subvolume(path / f"n{n}")
    for _ in range(5):
        path = path / "n0"
        create_subvolume(path / "n0")
    fill(path / "data", 100 * MB)
    disks.scratch(ONE)
    disks.delete(ONE)
    assert disks.report(ONE) is None
    assert [*store.disks.iterdir(), *store.scratch.iterdir()] == []


def test_a_copy_is_independent_and_has_a_limit_of_its_own(disks: Disks) -> None:
    disks.create(ONE, 100 * MB)
    disks.put_bundle(ONE, BUNDLE)
    fill(disks.app(ONE) / "data", 20 * MB)
    disks.scratch(ONE)
    disks.clone(ONE, TWO, 15 * MB)
    report = disks.report(TWO)
    assert report
    assert report.bundle_hash == BUNDLE.hash
    assert (disks.app(TWO) / "data").read_bytes() == (disks.app(ONE) / "data").read_bytes()
    (disks.app(TWO) / "main.py").write_text("changed")
    assert (disks.app(ONE) / "main.py").read_text() == "print(1)\n"
    assert fill(disks.app(TWO) / "more", 30 * MB) < 15 * MB
    assert list((disks.scratch(TWO) / "upper").iterdir()) == []
    disks.delete(ONE)
    assert (disks.app(TWO) / "data").stat().st_size == 20 * MB


def test_home_is_kept_beside_the_files_and_goes_into_a_backup(disks: Disks) -> None:
    disks.create(ONE, 20 * MB)
    assert disks.home(ONE).stat().st_uid == APP_OWNER
    (disks.home(ONE) / ".cache").mkdir()
    (disks.home(ONE) / ".cache/model").write_text("m")
    disks.clone(ONE, TWO, 15 * MB)
    assert ((disks.home(TWO) / ".cache/model").read_text(), list(disks.app(TWO).iterdir())) == ("m", [])
    disks.delete(TWO)
    disks.clone(ONE, TWO, 15 * MB, for_backup=True)
    assert (disks.app(TWO) / HOME / ".cache/model").read_text() == "m"
    # As after a restore, which fills a new disk's files.
    shutil.rmtree(disks.home(ONE) / ".cache")
    shutil.copytree(disks.app(TWO) / HOME, disks.app(ONE) / HOME)
    disks.mark_bundle(ONE, BUNDLE.hash)
    assert ((disks.home(ONE) / ".cache/model").read_text(), list(disks.app(ONE).iterdir())) == ("m", [])
    assert fill(disks.home(ONE) / "data", 30 * MB) < 20 * MB


@pytest.mark.parametrize("kind", ["link", "file", "folder"])
def test_a_home_planted_among_the_files_reaches_nothing(disks: Disks, tmp_path: Path, kind: str) -> None:
    disks.create(ONE, 20 * MB)
    planted = disks.app(ONE) / HOME
    if kind == "link":
        planted.symlink_to(tmp_path)
    elif kind == "file":
        planted.touch()
    else:
        planted.mkdir()
        (planted / "file").touch()
    disks.clone(ONE, TWO, 20 * MB, for_backup=True)
    disks.mark_bundle(TWO, BUNDLE.hash)
    home = disks.home(TWO)
    assert os.path.lexists(disks.app(TWO) / HOME)
    assert not home.is_symlink()
    assert home.is_dir()
    assert home.resolve().is_relative_to(disks.app(TWO).parent.resolve())


def test_copying_again_keeps_the_first_copy(disks: Disks) -> None:
    disks.create(ONE, GB)
    disks.clone(ONE, TWO, GB)
    (disks.app(TWO) / "kept").touch()
    disks.clone(ONE, TWO, GB)
    assert (disks.app(TWO) / "kept").exists()


@contextmanager
def slow_delete(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing full is taken apart meanwhile; who waits for it waits for a while, and then no longer."""
    go_on, lift = threading.Event(), tree._lift

    def wait(*arguments: Any) -> None:
        go_on.wait(5)
        lift(*arguments)

    monkeypatch.setattr(tree, "_lift", wait)
    try:
        yield
    finally:
        go_on.set()


def throw_away(disks: Disks, disk: DiskId) -> Path:
    """Make the rest of an interrupted deletion of a full folder."""
    deleted = disks.trash(disk) / "deleted"
    (deleted / "deeper").mkdir(parents=True)
    (deleted / "deeper/file").touch()
    return deleted


def test_a_copy_waits_for_nothing_that_was_deleted(disks: Disks, monkeypatch: pytest.MonkeyPatch) -> None:
    disks.create(ONE, GB)
    deleted = throw_away(disks, ONE)
    (disks.incoming(ONE) / "on-its-way").touch()
    with slow_delete(monkeypatch):
        disks.clone(ONE, TWO, GB)
        disks.create(DiskId("three"), GB)
        assert (disks.trash(TWO) / "deleted/deeper/file").exists()
        assert list(disks.incoming(TWO).iterdir()) == []
    assert soon(lambda: not list(disks.trash(TWO).iterdir()))
    assert deleted.exists(), "the original is none of the copy's business"


def test_a_start_waits_for_nothing_that_was_deleted_and_it_goes(
    disks: Disks, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    disks.create(ONE, GB)
    deleted = throw_away(disks, ONE)
    (disks.incoming(ONE) / "on-its-way").touch()
    next_disks = Disks(store)
    with slow_delete(monkeypatch):
        next_disks.open()
        assert (deleted / "deeper/file").exists()
        assert list(disks.incoming(ONE).iterdir()) == []
    assert soon(lambda: not list(disks.trash(ONE).iterdir()))
    next_disks.close()


def test_a_start_fails_on_no_disk_that_is_full(disks: Disks, store: Store) -> None:
    disks.create(ONE, 10 * MB)
    throw_away(disks, ONE)
    (disks.incoming(ONE) / "on-its-way").touch()
    fill(disks.app(ONE) / "data", 20 * MB)
    next_disks = Disks(store)
    next_disks.open()
    next_disks.close()
    assert list(disks.incoming(ONE).iterdir()) == []


def test_a_disk_is_deleted_while_its_trash_is_emptied(
    disks: Disks, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    disks.create(ONE, GB)
    throw_away(disks, ONE)
    with slow_delete(monkeypatch):
        disks.clone(ONE, TWO, GB)
        disks.delete(TWO)
        disks.clone(ONE, TWO, GB)
    assert soon(lambda: not list(disks.trash(TWO).iterdir()))


def test_a_bundle_is_recorded_last(disks: Disks, monkeypatch: pytest.MonkeyPatch) -> None:
    disks.create(ONE, GB)
    disks.put_bundle(ONE, BUNDLE)
    app = disks.app(ONE)
    assert (app / "main.py").stat().st_uid == APP_OWNER
    assert (app / "a/run.sh").stat().st_mode & 0o777 == 0o755

    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("builderd.engine.oci.storage.app_builds.write_files", crash)
    with pytest.raises(KeyboardInterrupt):
        disks.put_bundle(ONE, make_bundle([BundleFile("other", b"")]))
    report = disks.report(ONE)
    assert report
    assert report.bundle_hash is None, "neither the old nor the new one is whole"


def test_after_a_crash_of_the_machine_only_a_bundle_that_was_safe_by_then_counts(
    disks: Disks, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    for disk in (ONE, TWO):
        disks.create(disk, GB)
    disks.put_bundle(ONE, BUNDLE)
    store.deferred_sync.sync()
    disks.put_bundle(TWO, BUNDLE)
    monkeypatch.setattr("builderd.engine.oci.storage.store.boot_id", lambda: "another boot")
    reports = {disk: disks.report(disk) for disk in (ONE, TWO)}
    assert [report and report.bundle_hash for report in reports.values()] == [BUNDLE.hash, None]
    disks.put_bundle(TWO, BUNDLE)
    again = disks.report(TWO)
    assert again
    assert again.bundle_hash == BUNDLE.hash


def test_a_copy_of_a_disk_is_safe_at_once(disks: Disks, monkeypatch: pytest.MonkeyPatch) -> None:
    disks.create(ONE, GB)
    disks.put_bundle(ONE, BUNDLE)
    disks.clone(ONE, TWO, GB)
    monkeypatch.setattr("builderd.engine.oci.storage.store.boot_id", lambda: "another boot")
    report = disks.report(TWO)
    assert report
    assert report.bundle_hash == BUNDLE.hash


def test_bundle_over_the_disk_size_is_no_capacity(disks: Disks) -> None:
    disks.create(ONE, 10 * MB)
    fill(disks.app(ONE) / "data", 20 * MB)
    large = make_bundle([BundleFile("large", os.urandom(5 * MB))])
    with pytest.raises(NoCapacity, match="full"):
        disks.put_bundle(ONE, large)
    report = disks.report(ONE)
    assert report
    assert report.bundle_hash is None


def test_no_more_is_promised_than_there_is(disks: Disks) -> None:
    with pytest.raises(NoCapacity, match="no room") as caught:
        disks.create(ONE, 100 * GB)
    assert caught.value.data["wanted"] == 100 * GB + SCRATCH_BYTES
    assert disks.report(ONE) is None
    disks.create(ONE, 3 * GB)
    with pytest.raises(NoCapacity):
        disks.create(TWO, 3 * GB)
    with pytest.raises(NoCapacity):
        disks.clone(ONE, TWO, 3 * GB)
    with pytest.raises(NoCapacity):
        disks.create(ONE, 7 * GB)
    disks.delete(ONE)
    disks.create(TWO, 3 * GB)


def test_used_disk_space_is_not_counted_twice(disks: Disks) -> None:
    """Were it, the second one would find no room: 3.25 + 1.15 GB are promised, 0.6 GB less than 4.5 GB is free."""
    disks.create(ONE, 3 * GB)
    fill(disks.app(ONE) / "data", 600 * MB)
    disks.create(TWO, int(0.9 * GB))


@pytest.mark.parametrize("name", ["../disks", "a/b", "", ".", "..", "A", "x" * 65, "\0"])
def test_malformed_disk_id_reaches_nothing(disks: Disks, name: str) -> None:
    for call in (disks.app, disks.delete, disks.report, disks.scratch, disks.usage):
        with pytest.raises(NotFound):
            call(DiskId(name))
    with pytest.raises(NotFound):
        disks.create(DiskId(name), GB)


def test_missing_disk_is_reported(disks: Disks) -> None:
    assert disks.report(ONE) is None
    for call in (disks.app, disks.scratch, disks.usage):
        with pytest.raises(NotFound, match="no disk one"):
            call(ONE)
    with pytest.raises(NotFound):
        disks.put_bundle(ONE, BUNDLE)
    with pytest.raises(NotFound):
        disks.clone(ONE, TWO, GB)
    assert disks.report(TWO) is None


def test_after_a_restart_claims_stand_and_what_was_half_made_is_gone(tmp_path: Path) -> None:
    killed = new_store(tmp_path)
    with opened(killed):
        disks = Disks(killed)
        disks.create(ONE, 4 * GB)
        create_subvolume(killed.disks / ".two")
    with open_store(tmp_path) as store:
        disks = Disks(store)
        disks.open()
        assert [path.name for path in store.disks.iterdir()] == ["one"]
        with pytest.raises(NoCapacity):
            disks.create(TWO, 2 * GB)


def test_groups_that_the_operator_made_are_left_alone(disks: Disks, store: Store) -> None:
    subprocess.run(["btrfs", "qgroup", "create", "1/100000", store.root], check=True)
    store.quota.drop_unused()
    assert list(store.quota._groups.glob("1_100000"))
    subprocess.run(["btrfs", "qgroup", "destroy", "1/100000", store.root], check=True)


def test_no_group_is_left_of_disks_that_are_gone(disks: Disks, store: Store) -> None:
    groups = store.quota._groups

    def none_left() -> bool:
        store.quota.drop_unused()
        return not list(groups.glob("100_*"))

    assert soon(none_left)
    for _ in range(10):
        disks.create(ONE, GB)
        disks.scratch(ONE)
        disks.delete(ONE)
    assert soon(none_left)
