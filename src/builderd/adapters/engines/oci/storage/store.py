"""Store: the one btrfs file system on which disks, layers and builds lie, mounted for this service.

It stays mounted when the service ends, since sandboxes continue running on it, and is adopted by the next one.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from builderd.adapters.engines.oci.network.host_files import set_mode
from builderd.adapters.engines.oci.storage.backing import (
    Backing,
    ImageBacking,
    Kind,
    choose_backing,
    folder_of,
    image_of,
    is_mounted,
)
from builderd.adapters.engines.oci.storage.deferred_sync import DeferredSync
from builderd.adapters.engines.oci.storage.quotas import FULL, Quota, enable_quota
from builderd.adapters.engines.oci.storage.space_reservations import SpaceReservations, StorageDevice
from builderd.adapters.engines.oci.storage.store_watch import READ_ONLY, StoreWatch
from builderd.domain.errors import EngineUnavailable
from builderd.linux.json_files import read_json, write_json
from builderd.ports.engine import Readiness, StoreOptions

Progress = Callable[[str], None]

FOLDERS = ("disks", "scratch", "layers", "builds")
BUSY_SECONDS = 2.0


class Store:
    """Store of the service ``instance``."""

    def __init__(self, data_dir: Path, mount_point: Path, options: StoreOptions, instance: str) -> None:
        self.root = mount_point
        self.disks, self.scratch, self.layers, self.builds = (mount_point / name for name in FOLDERS)
        self._data_dir = data_dir
        self._options = options
        self._instance = instance
        self._lock: int | None = None
        self.deferred_sync = DeferredSync(mount_point)
        self._quota: Quota | None = None
        self._reservations: SpaceReservations | None = None
        self._device: StorageDevice | None = None
        self._watch: StoreWatch | None = None

    @property
    def quota(self) -> Quota:
        assert self._quota, "the store is open"
        return self._quota

    @property
    def reservations(self) -> SpaceReservations:
        assert self._reservations, "the store is open"
        return self._reservations

    def open(self, progress: Progress) -> None:
        """Create the store if missing, and mount it or adopt its mount. Idempotent.

        Raises ``EngineUnavailable`` when another service has it or it is not the one in which the disks of this data
        directory lie, ``NoCapacity`` when the host has no space for it.
        """
        if self._reservations:
            return
        options = self._options
        self._data_dir.mkdir(parents=True, exist_ok=True)
        self._take_lock()
        backing = choose_backing(self._data_dir, options.device, options.size_bytes, options.floor_bytes)
        refuse_another(self._data_dir, backing)
        backing.prepare(progress)
        self._mount(backing)
        remember(self._data_dir, backing)
        backing.grow(self.root, progress)
        # Only root makes mounts; no other user of the host may read tenants' files.
        set_mode(self.root, 0o700)
        for folder in (self.disks, self.scratch, self.layers, self.builds):
            folder.mkdir(mode=0o711, exist_ok=True)
        self._quota = enable_quota(self.root, int(self._instance, 16))
        image = backing.location if isinstance(backing, ImageBacking) else None
        self._device = StorageDevice(self.root, image, options.floor_bytes)
        self._reservations = SpaceReservations(self._device, self._quota, options.overcommit)
        self._watch = StoreWatch(self._device, self._quota, self._reservations)

    def start_watch(self) -> None:
        """Start the watch over reservations. Call it once existing claims are adopted."""
        assert self._watch, "the store is open"
        self._watch.start()

    def failure_reason(self) -> str | None:
        """Return why apps cannot write and what to do; None when they can."""
        return self._watch.failure_reason() if self._watch else None

    def failure(self) -> Readiness | None:
        """Return why sandboxes cannot start on this store; None when they can."""
        reason = self.failure_reason()
        return Readiness(False, reason, full=self.is_full()) if reason else None

    def is_full(self) -> bool:
        """Return True when sandboxes and builds get no more space, however little of their own limits they use.

        A store that failed for another reason, a read-only one, is not full, whatever room it has.
        """
        if self._watch and self._watch.failure_reason() is not None:
            return self._watch.is_full()
        room, limit = self.reservations.writable(), self.quota.limit_of(self.quota.total)
        return min(room, limit - self.quota.used(self.quota.total) if limit else room) < FULL

    def is_short(self) -> bool:
        """Return True when the host's file system below the store may soon be full."""
        return self._device is not None and self._device.is_host_short()

    def _take_lock(self) -> None:
        """Lock the store: two services on it would not know each other's reservations."""
        if self._lock is not None:
            return
        lock = os.open(self._data_dir / "store.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(lock)
            raise EngineUnavailable(f"Another service uses the store in {self._data_dir}.") from error
        self._lock = lock

    def _mount(self, backing: Backing) -> None:
        self.root.mkdir(mode=0o711, parents=True, exist_ok=True)
        if is_mounted(self.root):
            if backing.is_at(self.root) and self._is_sound():
                claim_for(self.root, self._instance, backing.location)
                return
            # The data directory was replaced while an earlier service's store was mounted.
            _unmount(self.root)
        try:
            # Bound to itself and shared: each sandbox starts with a copy of all mounts of the host, and a copy of
            # the store follows its unmounting only where the mount below is shared. Made private in between, so that
            # it shares with its own copies only.
            for options in (["--bind", str(self.root)], ["--make-private"], ["--make-shared"]):
                subprocess.run(["mount", *options, self.root], check=True, capture_output=True)
            backing.mount(self.root)
            claim_for(self.root, self._instance, backing.location)
        except BaseException:
            _unmount(self.root)
            raise

    def _is_sound(self) -> bool:
        """Return True when the mount is writable; a read-only one is unmounted, to be mounted again.

        Raises ``EngineUnavailable`` where apps still run on it: the kernel writes to such a file system only once
        everything has let go of it.
        """
        if not os.statvfs(self.root).f_flag & os.ST_RDONLY:
            return True
        if _umount(self.root):
            raise EngineUnavailable(READ_ONLY.format(root=self.root))
        return False

    def release(self) -> None:
        """Release the store for another process; it stays mounted. Idempotent."""
        if self._watch:
            self._watch.close()
        self.deferred_sync.close()
        self._quota = self._reservations = self._device = self._watch = None
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def close(self) -> None:
        """Unmount the store, waiting for sandboxes that are about to end. Idempotent."""
        if self._watch:
            self._watch.close()
        if is_mounted(self.root):
            _unmount(self.root)
        self.release()


def _unmount(target: Path) -> None:
    """Unmount all mounts on this folder."""
    deadline = time.monotonic() + BUSY_SECONDS
    while is_mounted(target):
        if _umount(target):
            if time.monotonic() > deadline:
                _umount(target, "--lazy")
            time.sleep(0.05)


def _umount(target: Path, *options: str) -> int:
    return subprocess.run(["umount", *options, target], capture_output=True, check=False).returncode


RECORD, MARK = "store.json", "service.json"


def refuse_another(data_dir: Path, backing: Backing) -> None:
    """Raise ``EngineUnavailable`` when the disks of this data directory lie in another store than this one.

    ``store.json`` records the kind, the UUID and the path of the store. One in the data directory that is gone is
    forgotten: its owner wants another one.
    """
    found = _recorded(data_dir)
    if found is None:
        return
    # A store in the data directory moves with it.
    locations = {Kind.FOLDER: folder_of(data_dir), Kind.IMAGE: image_of(data_dir), Kind.DEVICE: Path(found["place"])}
    location = locations[kind := Kind(found["kind"])]
    record, text = data_dir / RECORD, f"The disks of this service lie in {location} (btrfs {found['uuid']})."
    if kind is not Kind.DEVICE and not os.path.lexists(location):
        record.unlink()
    elif (kind, found["uuid"]) == (backing.kind, backing.file_system()):
        return
    elif location == backing.location:
        raise EngineUnavailable(
            f"{text} What is there now is another file system: bring back the right one, or remove {record} to go on "
            "with this one, without those disks."
        )
    else:
        raise EngineUnavailable(
            f"{text} {backing.location} is another store, without them: set store.device back to what it was. To "
            "enlarge or move a store, see docs/storage.md. To begin with an empty one, in which apps come back from "
            "their backups or begin anew, run 'builderd down' and remove "
            f"{record if kind is Kind.DEVICE else location}."
        )


def remember(data_dir: Path, backing: Backing) -> None:
    """Write the record, once the store is mounted."""
    content = {"kind": str(backing.kind), "uuid": backing.file_system() or "", "place": str(backing.location)}
    if content != _recorded(data_dir):
        write_json(data_dir / RECORD, content, durable=True)


def _recorded(data_dir: Path) -> Any:
    return read_json(data_dir / RECORD, "Remove it, once the settings name the store in which the disks lie.")


def claim_for(root: Path, instance: str, location: Path) -> None:
    """Write the service's id into the store. Raises ``EngineUnavailable`` when it belongs to another service."""
    found = read_json(root / MARK, f"It is in {location}: mount that, and remove the file.")
    if found is None:
        write_json(root / MARK, {"id": instance}, durable=True)
    elif found["id"] != instance:
        raise EngineUnavailable(
            f"{location} is the store of another service ({found['id']}; this one is {instance}). Name another one. If "
            f"that service is gone for good and this one is to have it, mount it and remove {MARK} from its root."
        )
