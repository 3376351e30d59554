"""The store is made once, mounted once, adopted by the next service, and never promises what is not there."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.integration.oci.stores import is_let_go, new_store, open_store, opened, quiet

from builderd.core.errors import EngineUnavailable, NoCapacity
from builderd.core.resources import GB
from builderd.engine.oci.storage.backing import find_device, is_mounted, loop_device, total_bytes
from builderd.engine.oci.storage.store import Store
from builderd.engine.port import StoreOptions

pytestmark = pytest.mark.root


def mount_options(path: Path) -> set[str]:
    answer = subprocess.run(["findmnt", "-no", "OPTIONS", path], capture_output=True, text=True, check=True)
    return set(answer.stdout.strip().split(","))


def mounts_at(path: Path, process: int | str = "self") -> int:
    """Return the number of mounts of a store at a path, as this process sees them."""
    mounts = [line.split() for line in Path(f"/proc/{process}/mountinfo").read_text().splitlines()]
    roots = [mount[3] for mount in mounts if mount[4] == str(path)]
    return sum(root == "/" or root.endswith("/data/store") for root in roots)


def test_store_is_mounted_without_rights_for_its_files(tmp_path: Path) -> None:
    lines: list[str] = []
    store = new_store(tmp_path)
    store.open(lines.append)
    try:
        assert {"nosuid", "nodev", "noatime"} <= mount_options(store.root)
        assert any("6 GB" in line for line in lines)
    finally:
        store.close()
    assert not store.root.is_mount()
    assert find_device(tmp_path / "data/store.img") is None


def test_store_file_is_sparse_and_belongs_to_the_service(tmp_path: Path) -> None:
    with open_store(tmp_path):
        status = (tmp_path / "data/store.img").stat()
        assert status.st_size == 6 * GB
        assert status.st_blocks * 512 < GB // 10
        assert status.st_mode & 0o077 == 0


def test_store_is_unreadable_for_other_users(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        (store.disks / "id/app").mkdir(parents=True)
        (store.disks / "id/app/secret").write_text("kept")
        for folder in (tmp_path, *tmp_path.parents):
            if folder.stat().st_uid == 0 and folder.is_relative_to(tmp_path.parents[1]):
                folder.chmod(0o711)
        path = store.disks / "id/app/secret"
        read = subprocess.run(
            ["setpriv", "--reuid=65534", "--clear-groups", "cat", path], capture_output=True, text=True, check=False
        )
        assert read.stdout == ""
        assert f"{path}: Permission denied" in read.stderr
        assert store.root.stat().st_mode & 0o077 == 0


def test_a_mount_that_outlived_its_service_is_adopted(tmp_path: Path) -> None:
    killed = new_store(tmp_path)
    killed.open(quiet)
    device = find_device(tmp_path / "data/store.img")
    killed.release()
    with open_store(tmp_path) as store:
        assert find_device(tmp_path / "data/store.img") == device
        assert mounts_at(store.root) == 1


def test_a_second_service_is_refused(tmp_path: Path) -> None:
    with open_store(tmp_path):
        with pytest.raises(EngineUnavailable, match="Another service"):
            new_store(tmp_path).open(quiet)


def test_a_mount_left_by_a_data_directory_that_was_deleted_is_not_taken_for_this_one(tmp_path: Path) -> None:
    old = new_store(tmp_path)
    old.open(quiet)
    (old.root / "old").touch()
    old.release()
    (tmp_path / "data/store.img").unlink()
    with open_store(tmp_path) as store:
        assert not (store.root / "old").exists()


def test_a_mount_that_was_taken_away_while_something_still_holds_it_comes_back_as_the_same_file_system(
    tmp_path: Path,
) -> None:
    with open_store(tmp_path) as store:
        with (store.root / "open").open("w") as file:
            subprocess.run(["umount", "--lazy", store.root], check=True)
            store.release()
            with opened(new_store(tmp_path)) as again:
                file.write("still one file system")
                file.flush()
                assert (again.root / "open").read_text() == "still one file system"


def test_copy_of_the_mount_in_another_namespace_is_unmounted_too(tmp_path: Path) -> None:
    """Sandboxes of another service have such a copy, if they were started in between."""
    with open_store(tmp_path) as store:
        stranger = subprocess.Popen(
            ["unshare", "--mount", "--propagation", "slave", "sh", "-c", "echo begun; read forever"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert stranger.stdout
        assert stranger.stdin
        assert stranger.stdout.readline() == b"begun\n"
        assert mounts_at(store.root, stranger.pid) == 1
    assert mounts_at(store.root, stranger.pid) == 0
    stranger.stdin.close()
    stranger.wait()


def test_one_file_gets_one_device_however_often_it_is_asked_for(tmp_path: Path) -> None:
    image = tmp_path / "image"
    with image.open("wb") as file:
        file.truncate(1 << 20)
    with loop_device(image) as first, loop_device(image) as second:
        assert first == second
    assert is_let_go(image)


def test_store_file_is_never_larger_than_the_host_has_room_for(tmp_path: Path) -> None:
    status = os.statvfs(tmp_path)
    free = status.f_bavail * status.f_frsize
    with open_store(tmp_path, StoreOptions(size_bytes=1 << 60, floor_bytes=GB)):
        assert (tmp_path / "data/store.img").stat().st_size < free


def test_store_below_the_floor_is_not_created(tmp_path: Path) -> None:
    with pytest.raises(NoCapacity, match=r"kept free \(store.floor\)"):
        new_store(tmp_path, StoreOptions(floor_bytes=1 << 60)).open(quiet)
    assert not (tmp_path / "data/store.img").exists()


def test_interrupted_store_creation_is_repeated(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/store.unfinished").write_text("half")
    with open_store(tmp_path):
        assert not (tmp_path / "data/store.unfinished").exists()


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Path]:
    image = tmp_path / "device"
    with image.open("wb") as file:
        file.truncate(2 * GB)
    with loop_device(image) as path:
        yield path


def test_an_empty_block_device_is_used(tmp_path: Path, device: Path) -> None:
    options = StoreOptions(device=device)
    with open_store(tmp_path, options) as store:
        (store.root / "kept").touch()
    with open_store(tmp_path, options) as store:
        assert (store.root / "kept").exists()
    assert not (tmp_path / "data/store.img").exists()


@pytest.mark.parametrize("argv", [["mkfs.ext4", "-q"], ["mkfs.btrfs", "-q", "-f"]], ids=["ext4", "btrfs-of-another"])
def test_a_block_device_that_has_done_else_is_not_touched(tmp_path: Path, device: Path, argv: list[str]) -> None:
    subprocess.run([*argv, device], check=True, capture_output=True)
    with device.open("rb") as file:
        before = file.read(1 << 20)
    with pytest.raises(EngineUnavailable, match="contains something else"):
        new_store(tmp_path, StoreOptions(device=device)).open(quiet)
    with device.open("rb") as file:
        assert file.read(1 << 20) == before


def test_a_partitioned_block_device_is_not_touched(tmp_path: Path, device: Path) -> None:
    one_partition = struct.pack("<446xB3xB3xLL48xH", 0, 0x83, 2048, 8192, 0xAA55)
    with device.open("r+b") as file:
        file.write(one_partition)
    with pytest.raises(EngineUnavailable, match="partition table"):
        new_store(tmp_path, StoreOptions(device=device)).open(quiet)


def test_a_file_named_as_device_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(EngineUnavailable, match="not a block device"):
        new_store(tmp_path, StoreOptions(device=tmp_path / "file")).open(quiet)


def test_data_directory_on_btrfs_is_used_directly(tmp_path: Path) -> None:
    with open_store(tmp_path / "outer") as outer:
        inner_folder = outer.root / "inner"
        inner_folder.mkdir()
        with open_store(inner_folder) as inner:
            assert not (inner_folder / "data/store.img").exists()
            assert {"nosuid", "nodev"} <= mount_options(inner.root)
            (inner.root / "kept").touch()
            inner.release()
            with opened(new_store(inner_folder)) as again:
                assert mounts_at(again.root) == 1, "adopted, and not mounted on itself"
        assert (inner_folder / "data/store/kept").exists()
        assert mounts_at(inner.root) == 0


# Which store is whose


def assert_refused(store: Store, words: str) -> None:
    with pytest.raises(EngineUnavailable, match=words):
        store.open(quiet)
    store.release()


def test_another_store_than_the_one_with_the_disks_is_refused_and_theirs_stays_mounted(
    tmp_path: Path, device: Path
) -> None:
    with open_store(tmp_path) as store:
        (store.root / "kept").touch()
        store.release()
        assert_refused(new_store(tmp_path, StoreOptions(device=device)), r"store\.img \(btrfs .* is another store")
        assert (store.root / "kept").exists()
    with device.open("rb") as file:
        assert file.read(1 << 20) == bytes(1 << 20), "it is not even formatted"
    with open_store(tmp_path) as store:
        assert (store.root / "kept").exists()


def test_another_device_is_refused_also_an_empty_one_and_none_at_all(tmp_path: Path, device: Path) -> None:
    with open_store(tmp_path, StoreOptions(device=device)):
        pass
    with (tmp_path / "another").open("wb") as file:
        file.truncate(2 * GB)
    with loop_device(tmp_path / "another") as another:
        for options in (StoreOptions(device=another), StoreOptions(size_bytes=2 * GB)):
            assert_refused(new_store(tmp_path, options), str(device))
    assert not (tmp_path / "data/store.img").exists()


def test_a_store_that_was_deleted_makes_way_for_any_other(tmp_path: Path, device: Path) -> None:
    with open_store(tmp_path):
        pass
    (tmp_path / "data/store.img").unlink()
    with open_store(tmp_path):
        pass
    (tmp_path / "data/store.img").unlink()
    with open_store(tmp_path, StoreOptions(device=device)):
        pass


def test_store_copied_to_a_device_grows_to_its_size(tmp_path: Path, device: Path) -> None:
    with open_store(tmp_path, StoreOptions(size_bytes=GB, floor_bytes=GB)) as store:
        (store.root / "kept").touch()
    image = tmp_path / "data/store.img"
    subprocess.run(["dd", f"if={image}", f"of={device}", "bs=16M", "conv=sparse"], check=True, capture_output=True)
    image.unlink()
    with open_store(tmp_path, StoreOptions(device=device)) as store:
        assert (store.root / "kept").exists()
        assert total_bytes(store.root) == 2 * GB


def test_store_of_another_service_is_refused_unchanged(tmp_path: Path, device: Path) -> None:
    options = StoreOptions(device=device)
    with open_store(tmp_path / "one", options) as store:
        (store.builds / "running").mkdir()
        second = new_store(tmp_path / "two", options, "99999999")
        assert_refused(second, r"another service \(0123abcd; this one is 99999999\)")
        assert not is_mounted(second.root)
        assert (store.builds / "running").exists()


def test_a_data_directory_that_came_to_btrfs_with_its_file_goes_on_with_that(tmp_path: Path) -> None:
    with open_store(tmp_path / "outer", StoreOptions(size_bytes=8 * GB, floor_bytes=GB)) as outer:
        inner = outer.root / "inner"
        with open_store(tmp_path / "before", StoreOptions(size_bytes=GB, floor_bytes=0)) as store:
            (store.root / "kept").touch()
        shutil.copytree(tmp_path / "before/data", inner / "data", copy_function=copy_sparsely)
        with open_store(inner, StoreOptions(floor_bytes=0)) as store:
            assert (store.root / "kept").exists()
        assert not (inner / "data/store").exists()


def copy_sparsely(source: str, target: str) -> None:
    subprocess.run(["cp", "--archive", "--sparse=always", source, target], check=True)


def test_a_link_to_a_file_that_is_not_mounted_is_no_reason_to_make_another(tmp_path: Path) -> None:
    with open_store(tmp_path):
        pass
    image = tmp_path / "data/store.img"
    image.unlink()
    image.symlink_to("/mnt/not-mounted/store.img")
    assert_refused(new_store(tmp_path), "mount it")
    assert image.is_symlink()


def test_store_file_grows_with_its_content_and_never_shrinks(tmp_path: Path) -> None:
    image = tmp_path / "data/store.img"
    with open_store(tmp_path, StoreOptions(size_bytes=GB, floor_bytes=GB)) as store:
        (store.root / "kept").touch()
        store.release()
        lines: list[str] = []
        again = new_store(tmp_path, StoreOptions(size_bytes=2 * GB, floor_bytes=GB))
        again.open(lines.append)
        assert lines == ["store: growing to 2 GB"]
        assert total_bytes(store.root) == image.stat().st_size == 2 * GB
        again.release()
    lines.clear()
    smaller = new_store(tmp_path, StoreOptions(size_bytes=GB, floor_bytes=GB))
    smaller.open(lines.append)
    try:
        assert (smaller.root / "kept").exists()
        assert total_bytes(smaller.root) == 2 * GB
        assert lines == []
    finally:
        smaller.close()


def test_a_growing_that_was_broken_off_is_finished(tmp_path: Path) -> None:
    with open_store(tmp_path, StoreOptions(size_bytes=GB, floor_bytes=GB)):
        pass
    os.truncate(tmp_path / "data/store.img", 2 * GB)
    with open_store(tmp_path, StoreOptions(size_bytes=2 * GB, floor_bytes=GB)) as store:
        assert total_bytes(store.root) == 2 * GB
