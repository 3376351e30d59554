"""The store is made once, mounted once, adopted by the next service, and never promises what is not there."""

from __future__ import annotations

import os
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.integration.oci.stores import is_let_go, new_store, open_store, opened, quiet

from builderd.adapters.engines.oci.loop import find_device, loop_device
from builderd.adapters.engines.oci.store import StoreOptions
from builderd.domain.errors import EngineUnavailable, NoCapacity
from builderd.domain.resources import GB

pytestmark = pytest.mark.root


def mount_options(path: Path) -> set[str]:
    answer = subprocess.run(["findmnt", "-no", "OPTIONS", path], capture_output=True, text=True, check=True)
    return set(answer.stdout.strip().split(","))


def mounts_at(path: Path, process: int | str = "self") -> int:
    """How many times a store is mounted there, in the mounts as this process sees them."""
    mounts = [line.split() for line in Path(f"/proc/{process}/mountinfo").read_text().splitlines()]
    roots = [mount[3] for mount in mounts if mount[4] == str(path)]
    return sum(root == "/" or root.endswith("/data/store") for root in roots)


def test_it_is_made_and_mounted_without_rights_for_what_lies_in_it(tmp_path: Path) -> None:
    lines: list[str] = []
    store = new_store(tmp_path)
    store.open(lines.append)
    try:
        assert {"nosuid", "nodev", "noatime"} <= mount_options(store.root)
        assert store.quota.simple
        assert any("6 GB" in line for line in lines)
    finally:
        store.close()
    assert not store.root.is_mount()
    assert find_device(tmp_path / "data/store.img") is None


def test_its_file_is_sparse_and_the_services_own(tmp_path: Path) -> None:
    with open_store(tmp_path):
        status = (tmp_path / "data/store.img").stat()
        assert status.st_size == 6 * GB
        assert status.st_blocks * 512 < GB // 10
        assert status.st_mode & 0o077 == 0


def test_what_was_in_it_is_there_the_next_time(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        (store.root / "kept").write_text("yes")
    with open_store(tmp_path) as store:
        assert (store.root / "kept").read_text() == "yes"


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
        with (store.root / "open").open("w") as held:
            subprocess.run(["umount", "--lazy", store.root], check=True)
            store.release()
            with opened(new_store(tmp_path)) as again:
                held.write("still one file system")
                held.flush()
                assert (again.root / "open").read_text() == "still one file system"


def test_a_copy_of_the_mount_in_the_namespace_of_somebody_else_goes_with_it(tmp_path: Path) -> None:
    """As another service's sandboxes have it, which were started meanwhile."""
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


def test_a_file_that_is_locked_is_not_mounted(tmp_path: Path) -> None:
    with open_store(tmp_path):
        pass
    image = tmp_path / "data/store.img"
    holder = subprocess.Popen(["flock", image, "sh", "-c", "echo locked; read forever"], stdin=-1, stdout=-1)
    assert holder.stdout
    assert holder.stdin
    try:
        assert holder.stdout.readline() == b"locked\n"
        with pytest.raises(EngineUnavailable, match="in use"):
            new_store(tmp_path).open(quiet)
    finally:
        holder.stdin.close()
        holder.wait()


def test_one_file_gets_one_device_however_often_it_is_asked_for(tmp_path: Path) -> None:
    image = tmp_path / "image"
    with image.open("wb") as file:
        file.truncate(1 << 20)
    with loop_device(image) as first, loop_device(image) as second:
        assert first == second
    assert is_let_go(image)


def test_its_file_is_never_larger_than_the_host_has_room_for(tmp_path: Path) -> None:
    status = os.statvfs(tmp_path)
    free = status.f_bavail * status.f_frsize
    with open_store(tmp_path, StoreOptions(size_bytes=1 << 60, floor_bytes=GB)):
        assert (tmp_path / "data/store.img").stat().st_size < free


def test_without_room_above_the_floor_none_is_made_and_the_message_says_so(tmp_path: Path) -> None:
    with pytest.raises(NoCapacity, match=r"kept free \(store.floor\)"):
        new_store(tmp_path, StoreOptions(floor_bytes=1 << 60)).open(quiet)
    assert not (tmp_path / "data/store.img").exists()


def test_a_making_that_was_cut_off_is_begun_anew(tmp_path: Path) -> None:
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
def test_a_block_device_that_holds_something_else_is_not_touched(tmp_path: Path, device: Path, argv: list[str]) -> None:
    subprocess.run([*argv, device], check=True, capture_output=True)
    with device.open("rb") as file:
        before = file.read(1 << 20)
    with pytest.raises(EngineUnavailable, match="holds something else"):
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
    with pytest.raises(EngineUnavailable, match="no block device"):
        new_store(tmp_path, StoreOptions(device=tmp_path / "file")).open(quiet)


def test_a_data_directory_on_btrfs_is_used_as_it_is(tmp_path: Path) -> None:
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
