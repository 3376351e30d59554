"""Store: the one btrfs file system on which disks, layers and builds lie, mounted for this service.

It stays mounted when the service ends, since sandboxes continue running on it, and is adopted by the next one. Its
deferred sync makes written folders durable a few seconds later, while the app that waits for them starts.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from builderd.core.errors import BuilderdError, EngineUnavailable, InstallFailed, NoCapacity
from builderd.core.resources import GB
from builderd.engine.oci.network.host_files import set_mode
from builderd.engine.oci.storage.backing import (
    Backing,
    ImageBacking,
    Kind,
    choose_backing,
    folder_of,
    image_of,
    is_mounted,
)
from builderd.engine.oci.storage.quotas import FULL, Quota, enable_quota
from builderd.engine.oci.storage.space_reservations import READ_ONLY, SpaceReservations, StorageDevice, StoreWatch
from builderd.engine.oci.storage.subvolumes import folder
from builderd.engine.port import Readiness, StoreOptions
from builderd.linux.atomic_files import read_if_there, read_json, write_json
from builderd.linux.processes import boot_id
from builderd.linux.syscalls import sync_file_system

Progress = Callable[[str], None]

FOLDERS = ("disks", "scratch", "layers", "builds")
BUSY_SECONDS = 2.0
#: Extended attribute of disks and layers, which only root reads: whose they are.
TENANT = "trusted.builderd.tenant"


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
        for made in (self.disks, self.scratch, self.layers, self.builds):
            made.mkdir(mode=0o711, exist_ok=True)
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

    def growth_room(self, group: int, tenant: str) -> int:
        """Return the bytes that limits of growth leave to the disk or build with this group, and to its tenant."""
        groups = (self.quota.disk_growth(group), self.quota.tenant_growth(tenant))
        return min(self.quota.room(one) for one in groups)

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


log = logging.getLogger(__name__)

SYNC_MARK = "boot"
#: One sync covers a burst of deployments, and runs after their apps have started.
DELAY_SECONDS = 5.0


class DeferredSync:
    """Sync of the file system that ``root`` lies on, for folders marked since the last one. Thread-safe."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._lock = threading.Lock()
        self._marked: set[Path] = set()
        self._timer: threading.Timer | None = None

    def mark(self, filled: Path) -> None:
        """Mark a filled folder as not yet durable. Call it before its content gets its final name."""
        with self._lock:
            (filled / SYNC_MARK).write_text(boot_id())
            self._sync_later(filled)

    def adopt(self, filled: Path) -> bool:
        """Take over a folder of an earlier service; return False when a crash of the machine may have damaged it."""
        if is_damaged(filled):
            return False
        if (filled / SYNC_MARK).exists():
            with self._lock:
                self._sync_later(filled)
        return True

    def _sync_later(self, filled: Path) -> None:
        self._marked.add(filled)
        if self._timer is None:
            self._timer = threading.Timer(DELAY_SECONDS, self._try)
            self._timer.daemon = True
            self._timer.start()

    def _try(self) -> None:
        """Sync; on failure the marks stay, which only costs some work after a crash of the machine."""
        try:
            self.sync()
        except OSError as error:
            log.warning("store sync failed root=%s error=%s", self._root, error)

    def sync(self) -> None:
        """Sync the file system and remove the marks set before. Waits for everything that is still to be written."""
        with self._lock:
            synced, self._marked, self._timer = self._marked, set(), None
        with folder(self._root) as root:
            sync_file_system(root)
        with self._lock:
            for filled in synced - self._marked:
                (filled / SYNC_MARK).unlink(missing_ok=True)

    def close(self) -> None:
        """Leave the marked folders to the next service."""
        with self._lock:
            if self._timer:
                self._timer.cancel()
            self._timer = None


def is_damaged(filled: Path) -> bool:
    """Return True when the machine went down after the folder was filled and before it was synced."""
    mark = read_if_there(filled / SYNC_MARK)
    return mark is not None and mark.strip() != boot_id()


#: Words by which programs name EDQUOT: the message of libc, and the code as Node.js and others have it.
_QUOTA_WORDS = ("disk quota exceeded", "edquot")


def layer_too_large(
    room: int, most: int, limit: int | None, quota: int | None, *, is_app: bool, size: int | None = None
) -> BuilderdError:
    """Return the error of a layer over its tenant's ``quota``, larger than any may be, or than the store has room for.

    ``room``: bytes that it had; ``limit``: those that its tenant had left for it, if that is limited; ``most``: those
    that any layer may have. ``size`` is None if it was stopped at the limit.
    """
    takes = f"{'This build makes' if is_app else 'These dependencies take'} "
    takes += f"more than {_gb(room)}" if size is None else _gb(size)
    if room == limit:
        of_all = "" if quota is None else f" of {_gb(quota)}"
        return InstallFailed(
            f"{takes}, and {_gb(room)} is left of your limit for layers{of_all}. "
            f"{'Have it make less' if is_app else 'Leave out packages'}, or delete builders that you no longer need "
            "(their layers go with them); the operator sets the limit (tenant.layers)."
        )
    if room < most:
        return NoCapacity(
            f"{takes}, which is all that the machine's store has for it now (a layer may have {_gb(most)}). {_CURE}",
            retry_after=60,
        )
    cure = (
        "have it make less, or write what is large at run time onto the disk"
        if is_app
        else "leave out what the app does not need (of torch, the wheels for the CPU alone)"
    )
    return InstallFailed(
        f"{takes}, the most that a layer may have here (a quarter of the store, at most 10 GB): {cure}."
    )


_CURE = (
    "Delete a builder that is not needed: stopping one frees nothing. Or its operator frees space (builderd doctor) or "
    "enlarges the store (store.size). Then try again."
)


def store_full(store: Store) -> BuilderdError:
    """Return the error of a write that the store of all disks and layers has no room for, or takes no more."""
    reason = store.failure_reason()
    if reason is None:
        nearly = not store.is_full() and store.reservations.is_nearly_full()
        is_full = "is nearly full, and what grew most gets no more" if nearly else "is full"
        return NoCapacity(f"The machine's store for apps and layers {is_full}. {_CURE}", retry_after=60)
    return NoCapacity(reason, retry_after=60) if store.is_full() else EngineUnavailable(reason, retry_after=60)


@contextmanager
def full_store_named(store: Store) -> Iterator[None]:
    """Raise ``NoCapacity`` where the store itself had no room for a write of the service.

    Errors of other file systems pass: a full one beside the store is a machine fault.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT) and _is_in(store, error):
            raise store_full(store) from error
        raise


def _is_in(store: Store, error: OSError) -> bool:
    """Return True if the write was to the store; a write to an open file names no path."""
    if isinstance(error.filename, str | bytes):
        path = error.filename if isinstance(error.filename, str) else error.filename.decode(errors="replace")
        return path.startswith(f"{store.root}/")
    return error.errno == errno.EDQUOT or store.is_full()


def names_quota(lines: Iterable[str]) -> bool:
    """Return True if a program's output says that a quota ended it: it may have removed what it had written since."""
    return any(word in line.lower() for line in lines for word in _QUOTA_WORDS)


def _gb(size: int) -> str:
    return f"{size / GB:.2f} GB"
