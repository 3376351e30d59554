"""Backing of the store's file system: the data directory's own btrfs, a block device, or a sparse file."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import ClassVar

from builderd.core.errors import EngineUnavailable, NoCapacity
from builderd.core.resources import GB
from builderd.engine.oci.storage.subvolumes import file_system_uuid

Progress = Callable[[str], None]

#: Smallest store that is made, in bytes.
SMALLEST = 1 * GB
#: The host never honours set-user-id programs or devices among user data.
MOUNT_OPTIONS = "noatime,nosuid,nodev"
LABEL = "builderd"
#: Quotas count a byte of metadata once, so the disk must have it once: with two copies (mkfs' default on one device) an
#: app fills a store with twice its limit.
MKFS = ("mkfs.btrfs", "--quiet", "--label", LABEL, "--metadata", "single")

#: A new file system has less room for metadata: moved once, it gets a chunk of the usual size (256 MB), before apps
#: have allocated all that is left for their data. Without it a store of 6 GB is full with 5 GB.
LEAST_METADATA = 32 << 20


class Kind(StrEnum):
    FOLDER = "folder"
    DEVICE = "device"
    IMAGE = "image"


def folder_of(data_dir: Path) -> Path:
    return data_dir / "store"


def image_of(data_dir: Path) -> Path:
    return data_dir / "store.img"


@dataclass(frozen=True, slots=True)
class FolderBacking:
    """Folder on an existing btrfs file system. Its methods are those of all kinds of backing."""

    location: Path
    kind: ClassVar = Kind.FOLDER

    def file_system(self) -> str | None:
        """Return the UUID of the existing file system, None before it is made."""
        return file_system_uuid(self.location.resolve()) if self.location.exists() else None

    def prepare(self, progress: Progress) -> None:
        """Make the file system if there is none. Idempotent."""
        if not self.location.exists():
            progress(f"store: using the btrfs file system of {self.location.parent}")
            self.location.mkdir(mode=0o711)

    def mount(self, target: Path) -> None:
        _run("mount", "--bind", str(self.location), str(target))
        _run("mount", "-o", f"remount,bind,{MOUNT_OPTIONS}", str(target))

    def is_at(self, target: Path) -> bool:
        """Return True when this backing is mounted there, not one that an earlier service left."""
        return self.location.exists() and self.location.samefile(target)

    def grow(self, target: Path, progress: Progress) -> None:
        """Grow the mounted file system to its present limit: none here, it is the operator's."""


@dataclass(frozen=True, slots=True)
class DeviceBacking:
    """Whole block device. One with anything else on it is never written to."""

    location: Path
    kind: ClassVar = Kind.DEVICE

    def file_system(self) -> str | None:
        self._refuse_others()
        return _probe(self.location, "UUID") or None

    def _refuse_others(self) -> None:
        if not self.location.is_block_device():
            raise EngineUnavailable(f"store.device is {self.location}, which is not a block device.")

    def prepare(self, progress: Progress) -> None:
        self._refuse_others()
        kind, label = (_probe(self.location, tag) for tag in ("TYPE", "LABEL"))
        if not kind and not _probe(self.location, "PTTYPE"):
            progress(f"store: making a btrfs file system on {self.location}")
            _run(*MKFS, str(self.location))
        elif (kind, label) != ("btrfs", LABEL):
            raise EngineUnavailable(
                f"store.device {self.location} contains something else ({kind or 'a partition table'}). "
                f"Name another one, or empty it yourself: wipefs --all {self.location}"
            )

    def mount(self, target: Path) -> None:
        _mount_device(self.location, target)

    def is_at(self, target: Path) -> bool:
        return _mounted_device(target) == self.location.resolve()

    def grow(self, target: Path, progress: Progress) -> None:
        with self.location.open("rb") as device:
            size = device.seek(0, os.SEEK_END)
        if total_bytes(target) < size // 4096 * 4096:
            _fill(target, size, progress)


@dataclass(frozen=True, slots=True)
class ImageBacking:
    """Sparse file: it takes the host's space only as it fills, and releases what is deleted.

    ``size_bytes`` None takes what is free above the floor. A file that exists grows to a larger ``size_bytes``, and
    never gets smaller.
    """

    location: Path
    size_bytes: int | None
    floor_bytes: int
    kind: ClassVar = Kind.IMAGE

    def file_system(self) -> str | None:
        if self.location.exists():
            return _probe(self.location, "UUID")
        if self.location.is_symlink():
            raise EngineUnavailable(
                f"{self.location} is a link to {self.location.readlink()}, which is not there: mount it."
            )
        return None

    def prepare(self, progress: Progress) -> None:
        if self.file_system() is not None:
            return
        size = self._size()
        progress(f"store: making a btrfs file system of {size / GB:.0f} GB in {self.location} (sparse)")
        unfinished = self.location.with_suffix(".unfinished")
        unfinished.unlink(missing_ok=True)
        with unfinished.open("xb") as file:
            os.fchmod(file.fileno(), 0o600)
            file.truncate(size)
        _run(*MKFS, str(unfinished))
        unfinished.rename(self.location)

    def _size(self) -> int:
        """Return the size, never more than the host has free: writes beyond that would be lost."""
        free = free_bytes(self.location.parent) - self.floor_bytes
        if free < SMALLEST:
            raise NoCapacity(
                f"The store needs at least {SMALLEST / GB:.0f} GB in {self.location.parent}, above the "
                f"{self.floor_bytes / GB:g} GB that are kept free (store.floor); there are {max(free, 0) / GB:.1f} GB. "
                "Free some, or set store.device."
            )
        size = min(free, self.size_bytes or free)
        return size // 4096 * 4096

    def mount(self, target: Path) -> None:
        with loop_device(self.location) as device:
            _mount_device(device, target)

    def is_at(self, target: Path) -> bool:
        return self.location.exists() and _mounted_device(target) == find_device(self.location)

    def grow(self, target: Path, progress: Progress) -> None:
        status = self.location.stat()
        possible = status.st_blocks * 512 + free_bytes(self.location.parent) - self.floor_bytes
        size = max(status.st_size, min(self.size_bytes or 0, possible) // 4096 * 4096)
        # Compared with the file system, not with the file: an earlier resize may have been interrupted in between.
        if total_bytes(target) < size:
            os.truncate(self.location, size)
            _run("losetup", "--set-capacity", str(find_device(self.location)))
            _fill(target, size, progress)


Backing = FolderBacking | DeviceBacking | ImageBacking


def choose_backing(data_dir: Path, device: Path | None, size_bytes: int | None, floor_bytes: int) -> Backing:
    """Return the backing; an existing one is kept, also when the data directory was moved to a btrfs file system."""
    if device:
        return DeviceBacking(device)
    folder, image = folder_of(data_dir), image_of(data_dir)
    file_system = _answer("stat", "--file-system", "--format", "%T", str(data_dir))
    if file_system == "btrfs" and (folder.exists() or not os.path.lexists(image)):
        return FolderBacking(folder)
    return ImageBacking(image, size_bytes, floor_bytes)


@contextmanager
def loop_device(image: Path) -> Iterator[Path]:
    """Yield the file's loop device: the one it has, else a new one. It vanishes with its last mount.

    Mount it before leaving the context. A file never has two of them: a file system mounted through two devices at once
    is destroyed.
    """
    if found := find_device(image):
        yield found
        return
    _run("losetup", "--find", "--nooverlap", "--direct-io=on", "--sector-size=4096", str(image))
    device = find_device(image)
    assert device is not None, "it was just attached"
    try:
        yield device
    finally:
        # While it is mounted, this only marks it to be detached with its last mount.
        _run("losetup", "--detach", str(device))


def find_device(image: Path) -> Path | None:
    """Return the loop device of this file, also when the file was moved; None when it has none."""
    names = _answer("losetup", "--noheadings", "--output", "NAME", "--associated", str(image)).split()
    return Path(names[0]) if names else None


def free_bytes(folder: Path) -> int:
    """Return the bytes free for use on the file system of this folder."""
    status = os.statvfs(folder)
    return status.f_bavail * status.f_frsize


def total_bytes(folder: Path) -> int:
    """Return the size in bytes of the file system of this folder."""
    status = os.statvfs(folder)
    return status.f_blocks * status.f_frsize


def _fill(target: Path, size: int, progress: Progress) -> None:
    """Resize the mounted file system to its device."""
    progress(f"store: growing to {size / GB:.0f} GB")
    _run("btrfs", "filesystem", "resize", "max", str(target))


def _mount_device(device: Path, target: Path) -> None:
    _run("mount", "--types", "btrfs", "--options", f"{MOUNT_OPTIONS},discard=async", str(device), str(target))
    metadata = Path("/sys/fs/btrfs", file_system_uuid(target), "allocation/metadata")
    # In percent: the kernel empties chunks used less, so that who fills and empties a disk leaves others their space.
    (metadata / "bg_reclaim_threshold").write_text("30")
    if int((metadata / "total_bytes").read_text()) < LEAST_METADATA:
        _run("btrfs", "balance", "start", "-m", str(target))


def is_mounted(target: Path) -> bool:
    """Return True when this folder is a mount point. (Device numbers do not show a bind of the same device.)"""
    return bool(_mount_sources(target))


def _mounted_device(target: Path) -> Path | None:
    sources = _mount_sources(target)
    return Path(sources[-1]) if sources else None


def _mount_sources(target: Path) -> list[str]:
    """Return the sources of mounts on this folder, the uppermost last."""
    return _answer("findmnt", "--noheadings", "--output", "SOURCE", "--mountpoint", str(target)).splitlines()


def _probe(device: Path, tag: str) -> str:
    return _answer("blkid", "--probe", "--match-tag", tag, "--output", "value", str(device))


def _answer(*argv: str) -> str:
    """Return a program's output, empty when it fails."""
    return subprocess.run(argv, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL).stdout.strip()


def _run(*argv: str) -> None:
    try:
        subprocess.run(argv, capture_output=True, text=True, check=True, stdin=subprocess.DEVNULL)
    except FileNotFoundError as error:
        raise EngineUnavailable(f"The store needs {argv[0]}: run builderd setup.") from error
    except subprocess.CalledProcessError as error:
        raise EngineUnavailable(f"The store: {argv[0]} failed: {error.stderr.strip()}") from error


PROC = Path("/proc")


def mounted_roots() -> frozenset[str]:
    """Return the roots, as paths within their file systems, of all mounts that any process has."""
    roots: set[str] = set()
    namespaces: set[str] = set()
    for process in PROC.iterdir():
        if process.name.isdecimal():
            roots.update(_roots(process, namespaces))
    return frozenset(roots)


def _roots(process: Path, namespaces: set[str]) -> list[str]:
    """Return a process's mounts; none when its namespace was read already, or it has ended."""
    try:
        namespace = str((process / "ns/mnt").readlink())
        if namespace in namespaces:
            return []
        namespaces.add(namespace)
        return [line.split(" ")[3] for line in (process / "mountinfo").read_text().splitlines()]
    except OSError:
        return []
