"""Backing of the store's file system: the data directory's own btrfs, a block device, or a sparse file."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from builderd.adapters.engines.oci.storage.loop import find_device, fit_device, loop_device
from builderd.adapters.engines.oci.storage.subvolumes import file_system_uuid
from builderd.domain.errors import EngineUnavailable, NoCapacity
from builderd.domain.resources import GB

Progress = Callable[[str], None]

#: Smallest store that is made, in bytes.
SMALLEST = 1 * GB
#: The host never honours set-user-id programs or devices among user data.
MOUNT_OPTIONS = "noatime,nosuid,nodev"
LABEL = "builderd"
#: Quotas count a byte of metadata once, so the disk must hold it once: with two copies (mkfs' default on one device) an
#: app fills a store with twice its limit.
MKFS = ("mkfs.btrfs", "--quiet", "--label", LABEL, "--metadata", "single")


class Kind(StrEnum):
    FOLDER = "folder"
    DEVICE = "device"
    IMAGE = "image"


class Backing(Protocol):
    @property
    def kind(self) -> Kind: ...

    @property
    def location(self) -> Path:
        """Return the folder, the device or the file."""

    def file_system(self) -> str | None:
        """Return the UUID of the existing file system, None before it is made."""

    def prepare(self, progress: Progress) -> None:
        """Make the file system if there is none. Idempotent."""

    def mount(self, target: Path) -> None:
        """Mount it on an existing folder."""

    def is_at(self, target: Path) -> bool:
        """Return True when this backing is mounted there, not one that an earlier service left."""

    def grow(self, target: Path, progress: Progress) -> None:
        """Grow the mounted file system to its present limit. Idempotent."""


def choose_backing(data_dir: Path, device: Path | None, size_bytes: int | None, floor_bytes: int) -> Backing:
    """Return the backing; an existing one is kept, also when the data directory was moved to a btrfs file system."""
    if device:
        return DeviceBacking(device)
    folder, image = folder_of(data_dir), image_of(data_dir)
    if _file_system(data_dir) == "btrfs" and (folder.exists() or not os.path.lexists(image)):
        return FolderBacking(folder)
    return ImageBacking(image, size_bytes, floor_bytes)


def folder_of(data_dir: Path) -> Path:
    return data_dir / "store"


def image_of(data_dir: Path) -> Path:
    return data_dir / "store.img"


@dataclass(frozen=True, slots=True)
class FolderBacking:
    """Folder on an existing btrfs file system."""

    folder: Path

    @property
    def kind(self) -> Kind:
        return Kind.FOLDER

    @property
    def location(self) -> Path:
        return self.folder

    def file_system(self) -> str | None:
        return file_system_uuid(self.folder.resolve()) if self.folder.exists() else None

    def prepare(self, progress: Progress) -> None:
        if not self.folder.exists():
            progress(f"store: using the btrfs file system of {self.folder.parent}")
            self.folder.mkdir(mode=0o711)

    def mount(self, target: Path) -> None:
        _run("mount", "--bind", str(self.folder), str(target))
        _run("mount", "-o", f"remount,bind,{MOUNT_OPTIONS}", str(target))

    def is_at(self, target: Path) -> bool:
        return self.folder.exists() and self.folder.samefile(target)

    def grow(self, target: Path, progress: Progress) -> None:
        """Do nothing: the file system is the operator's."""


@dataclass(frozen=True, slots=True)
class DeviceBacking:
    """Whole block device. One that holds anything else is never written to."""

    device: Path

    @property
    def kind(self) -> Kind:
        return Kind.DEVICE

    @property
    def location(self) -> Path:
        return self.device

    def file_system(self) -> str | None:
        self._refuse_others()
        return _probe(self.device, "UUID") or None

    def _refuse_others(self) -> None:
        if not self.device.is_block_device():
            raise EngineUnavailable(f"store.device is {self.device}, which is not a block device.")

    def prepare(self, progress: Progress) -> None:
        self._refuse_others()
        kind, label = (_probe(self.device, tag) for tag in ("TYPE", "LABEL"))
        if not kind and not _probe(self.device, "PTTYPE"):
            progress(f"store: making a btrfs file system on {self.device}")
            _run(*MKFS, str(self.device))
        elif (kind, label) != ("btrfs", LABEL):
            raise EngineUnavailable(
                f"store.device {self.device} holds something else ({kind or 'a partition table'}). "
                f"Name another one, or empty it yourself: wipefs --all {self.device}"
            )

    def mount(self, target: Path) -> None:
        _mount_device(self.device, target)

    def is_at(self, target: Path) -> bool:
        return _mounted_device(target) == self.device.resolve()

    def grow(self, target: Path, progress: Progress) -> None:
        with self.device.open("rb") as device:
            size = device.seek(0, os.SEEK_END)
        if _is_smaller(target, size):
            _fill(target, size, progress)


@dataclass(frozen=True, slots=True)
class ImageBacking:
    """Sparse file: it takes the host's space only as it fills, and releases what is deleted.

    ``size_bytes`` None takes what is free above the floor. A file that exists grows to a larger ``size_bytes``, and
    never gets smaller.
    """

    image: Path
    size_bytes: int | None
    floor_bytes: int

    @property
    def kind(self) -> Kind:
        return Kind.IMAGE

    @property
    def location(self) -> Path:
        return self.image

    def file_system(self) -> str | None:
        if self.image.exists():
            return _probe(self.image, "UUID")
        if self.image.is_symlink():
            raise EngineUnavailable(f"{self.image} is a link to {self.image.readlink()}, which is not there: mount it.")
        return None

    def prepare(self, progress: Progress) -> None:
        if self.file_system() is not None:
            return
        size = self._size()
        progress(f"store: making a btrfs file system of {size / GB:.0f} GB in {self.image} (sparse)")
        unfinished = self.image.with_suffix(".unfinished")
        unfinished.unlink(missing_ok=True)
        with unfinished.open("xb") as file:
            os.fchmod(file.fileno(), 0o600)
            file.truncate(size)
        _run(*MKFS, str(unfinished))
        unfinished.rename(self.image)

    def _size(self) -> int:
        """Return the size, never more than the host has free: writes beyond that would be lost."""
        free = free_bytes(self.image.parent) - self.floor_bytes
        if free < SMALLEST:
            raise NoCapacity(
                f"The store needs at least {SMALLEST / GB:.0f} GB in {self.image.parent}, above the "
                f"{self.floor_bytes / GB:g} GB that are kept free (store.floor); there are {max(free, 0) / GB:.1f} GB. "
                "Free some, or set store.device."
            )
        size = min(free, self.size_bytes or free)
        return size // 4096 * 4096

    def mount(self, target: Path) -> None:
        try:
            with loop_device(self.image) as device:
                _mount_device(device, target)
        except BlockingIOError as error:
            raise EngineUnavailable(f"{self.image} is in use by another program.") from error

    def is_at(self, target: Path) -> bool:
        return self.image.exists() and _mounted_device(target) == find_device(self.image)

    def grow(self, target: Path, progress: Progress) -> None:
        status = self.image.stat()
        possible = status.st_blocks * 512 + free_bytes(self.image.parent) - self.floor_bytes
        size = max(status.st_size, min(self.size_bytes or 0, possible) // 4096 * 4096)
        # Compared with the file system, not with the file: an earlier resize may have been interrupted in between.
        if _is_smaller(target, size):
            os.truncate(self.image, size)
            fit_device(self.image)
            _fill(target, size, progress)


def free_bytes(folder: Path) -> int:
    """Return the bytes free for use on the file system of this folder."""
    status = os.statvfs(folder)
    return status.f_bavail * status.f_frsize


def total_bytes(folder: Path) -> int:
    """Return the size in bytes of the file system of this folder."""
    status = os.statvfs(folder)
    return status.f_blocks * status.f_frsize


def _is_smaller(target: Path, size: int) -> bool:
    """Return True when the mounted file system is smaller than ``size``, apart from rounding to 4096 bytes."""
    return total_bytes(target) < size // 4096 * 4096


def _fill(target: Path, size: int, progress: Progress) -> None:
    """Resize the mounted file system to its device."""
    progress(f"store: growing to {size / GB:.0f} GB")
    _run("btrfs", "filesystem", "resize", "max", str(target))


def _mount_device(device: Path, target: Path) -> None:
    _run("mount", "--types", "btrfs", "--options", f"{MOUNT_OPTIONS},discard=async", str(device), str(target))


def is_mounted(target: Path) -> bool:
    """Return True when this folder is a mount point. (Device numbers do not show a bind of the same device.)"""
    return bool(_mount_sources(target))


def _mounted_device(target: Path) -> Path | None:
    sources = _mount_sources(target)
    return Path(sources[-1]) if sources else None


def _mount_sources(target: Path) -> list[str]:
    """Return the sources of mounts on this folder, the uppermost last."""
    return _answer("findmnt", "--noheadings", "--output", "SOURCE", "--mountpoint", str(target)).splitlines()


def _file_system(folder: Path) -> str:
    return _answer("stat", "--file-system", "--format", "%T", str(folder))


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
