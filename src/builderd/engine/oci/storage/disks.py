"""Disks of builders. Each is a subvolume with a limit, so that a copy of it takes no time.

``disks/<disk>/app`` is the persistent content of ``/app``, ``disks/<disk>/home`` of the user's home.
``disks/<disk>/bundle`` names the bundle that was last put there completely, ``disks/<disk>/replaced`` the one before it
while it is not; ``disks/<disk>/built`` lists what a build made of it. ``scratch/<disk>`` is what a sandbox writes
outside of ``/app``, thrown away at each start. It has a small limit of its own, so that an app whose disk is full can
still be started.

Inside a sandbox users are numbered from 0, on the disk from ``DISK_UID``: the same for all disks, and no user of the
host. Mounts map the one to the other, so that a copy needs no change of owners.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import threading
import time
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

from builderd.code.model import Bundle, changes
from builderd.core.errors import BuilderdError, NoCapacity, NotFound, TooLarge
from builderd.core.ids import DiskId
from builderd.core.resources import GB
from builderd.engine.oci.storage import space_reservations
from builderd.engine.oci.storage.app_builds import FinishedBuild, read_built, write_version
from builderd.engine.oci.storage.backing import mounted_roots
from builderd.engine.oci.storage.base import APP_UID
from builderd.engine.oci.storage.quotas import DiskSpace
from builderd.engine.oci.storage.store import SYNC_MARK, TENANT, Store, is_damaged, store_full
from builderd.engine.oci.storage.subvolumes import create_subvolume, folder, is_subvolume, snapshot
from builderd.engine.oci.storage.tree import clear, make_empty_folder, put_home_in, take_home_out
from builderd.engine.port import DiskReport
from builderd.linux import atomic_files
from builderd.linux.atomic_files import read_if_there
from builderd.linux.syscalls import sync_file_system

#: Owner on the disk of files that root inside a sandbox owns; 65536 ids from here on.
DISK_UID = 0x10000000
#: Quota groups of deleted disks are removed after so many deletions: their space takes a moment to come back.
SWEEP_EVERY = 50
SCRATCH_BYTES = space_reservations.SCRATCH_BYTES
APP_OWNER = DISK_UID + APP_UID
#: A disk with less space than this takes no files any more.
NEARLY_FULL = 16 << 20
INCOMING, TRASH = "incoming", "trash"
#: Time slice of one folder in the background before the next one: an app may refill its own without end.
SLICE_SECONDS = 5.0

_NAME = re.compile(r"[0-9a-z][0-9a-z-]{0,63}")
_UNFINISHED = "."
log = logging.getLogger(__name__)


class Disks:
    def __init__(self, store: Store) -> None:
        self._store = store
        #: Taken for every change of the set of disks, for milliseconds.
        self._lock = threading.Lock()
        self._deleted = 0
        self._scratch_lock = threading.Lock()
        self._background = BackgroundDelete()

    def open(self) -> None:
        """Remove half-made disks after a start, and reserve the space of the others."""
        for path in self._store.disks.iterdir():
            if path.name.startswith(_UNFINISHED):
                self._store.quota.delete(path)
            elif is_subvolume(path):
                quota = self._store.quota
                group = quota.group(path)
                size = quota.limit_of(group) + SCRATCH_BYTES
                self._store.reservations.adopt(path.name, size, group, read_tenant(path))
                if is_subvolume(scratch := self._store.scratch / path.name):
                    self._count_scratch(scratch)
                _remove_leftovers(path)
                self._background.add(path / TRASH)
                self._store.deferred_sync.adopt(path)
        self._store.quota.drop_unused()

    def close(self) -> None:
        """Stop background work. Idempotent."""
        self._background.close()

    def _count_scratch(self, scratch: Path) -> None:
        self._store.reservations.count_scratch(scratch.name, self._store.quota.group(scratch))

    def reserve(self, disk: DiskId, size_bytes: int) -> None:
        """Reserve the space of a disk that will be created. Raises ``NoCapacity``. Needs no lock."""
        self._store.reservations.reserve(disk, size_bytes + SCRATCH_BYTES)

    def create(self, disk: DiskId, size_bytes: int) -> None:
        """Create an empty disk with a hard limit; an existing one gets the new limit. Raises ``NoCapacity``."""
        with self._lock, self._new_disk(disk, size_bytes) as unfinished:
            if unfinished is None:
                return
            create_subvolume(unfinished)
            self._limit(disk, unfinished, size_bytes)
            for name in ("app", "home"):
                (unfinished / name).mkdir(mode=0o755)
                os.chown(unfinished / name, APP_OWNER, APP_OWNER)

    def clone(self, source: DiskId, target: DiskId, size_bytes: int, *, for_backup: bool = False) -> None:
        """Clone a disk, with a limit of its own that counts only later writes. Raises ``NoCapacity``.

        ``for_backup``: its home lies in ``app``, as in a backup; ``mark_bundle`` takes it out again.
        """
        origin = self._existing(source)
        with self._lock, self._new_disk(target, size_bytes) as unfinished:
            if unfinished is None:
                return
            snapshot(origin, unfinished)
            if is_damaged(origin):
                (unfinished / "bundle").unlink(missing_ok=True)
            # Taking the snapshot made the kernel write everything out.
            (unfinished / SYNC_MARK).unlink(missing_ok=True)
            _remove_leftovers(unfinished)
            if for_backup:
                put_home_in(unfinished)
            self._limit(target, unfinished, size_bytes)
        # Deleted content may be large: it goes in the background.
        self._background.add(self._path(target) / TRASH)

    def write_out(self, disk: DiskId) -> None:
        """Write the disk's dirty pages out, so that a clone made soon after is quick."""
        with folder(self._existing(disk)) as inside:
            sync_file_system(inside)

    @contextmanager
    def _new_disk(self, disk: DiskId, size_bytes: int) -> Iterator[Path | None]:
        """Yield a folder for a new disk, renamed at the end; None for an existing one, which gets the limit."""
        path = self._path(disk)
        self._store.reservations.claim(disk, size_bytes + SCRATCH_BYTES)
        if path.exists():
            self._limit(disk, path, size_bytes)
            yield None
            return
        unfinished = path.with_name(_UNFINISHED + disk)
        try:
            yield unfinished
            unfinished.rename(path)
        except BaseException:
            self._store.quota.delete(unfinished)
            self._store.reservations.release(disk)
            raise

    def _limit(self, disk: DiskId, path: Path, size_bytes: int) -> None:
        group = self._store.quota.limit(path, size_bytes)
        self._store.reservations.adopt(disk, size_bytes + SCRATCH_BYTES, group, read_tenant(path))

    def delete(self, disk: DiskId) -> None:
        """Delete a disk. Idempotent. Its space comes back within seconds."""
        path = self._path(disk)
        with self._lock:
            self._store.quota.delete(path)
            self._store.quota.delete(self._store.scratch / disk)
            self._store.reservations.release(disk)
            self._deleted += 1
            if self._deleted % SWEEP_EVERY == 0:
                self._store.quota.drop_unused()

    def report(self, disk: DiskId) -> DiskReport | None:
        path, quota = self._path(disk), self._store.quota
        try:
            size = quota.limit_of(quota.group(path))
        except FileNotFoundError:
            return None
        bundle = read_if_there(path / "bundle")
        if bundle is None or is_damaged(path):
            return DiskReport(disk, None, size)
        return DiskReport(disk, bundle.strip(), size, read_built(path).key)

    def put_bundle(
        self, disk: DiskId, bundle: Bundle, replaced: Bundle | None = None, build: FinishedBuild | None = None
    ) -> None:
        """Write the files into ``app``, then record the bundle. Raises ``NoCapacity`` when they do not fit.

        The result of a ``build`` is written over them, and what an earlier build had made is removed.

        A record that a crash of the machine came too close to does not count: the bundle is put there again, whole.
        So it is where another bundle than ``replaced`` is on the disk.
        """
        path = self._existing(disk)
        record, unfinished = path / "bundle", path / "replaced"
        hashes = {one.read_text().strip() for one in (record, unfinished) if one.exists()}
        is_there = replaced is not None and replaced.hash in hashes and not is_damaged(path)
        before = replaced if replaced and is_there else Bundle("", ())
        try:
            if before.hash:
                atomic_files.replace(unfinished, f"{before.hash}\n".encode(), mode=0o644)
            record.unlink(missing_ok=True)
            write_version(path, changes(before, bundle), bundle, build, APP_OWNER)
            self._store.deferred_sync.mark(path)
            atomic_files.replace(record, f"{bundle.hash}\n".encode(), mode=0o644)
            unfinished.unlink(missing_ok=True)
        except OSError as error:
            if error.errno not in (errno.EDQUOT, errno.ENOSPC):
                raise
            raise self._full(path) from error

    def mark_bundle(self, disk: DiskId, bundle_hash: str) -> None:
        """Record the bundle after a sync: the app's changes could not be restored from the bundle."""
        take_home_out(self._existing(disk))
        self.write_out(disk)
        atomic_files.replace(self._existing(disk) / "bundle", f"{bundle_hash}\n".encode(), mode=0o644)

    def _full(self, path: Path) -> BuilderdError:
        if self._is_stopped_by_store(path):
            return store_full(self._store)
        size = self._store.quota.limit_of(self._store.quota.group(path)) / GB
        return NoCapacity(
            f"The builder's disk of {size:.3g} GB is full: delete files in /app or ~/.cache, or ask for a larger disk."
        )

    def is_stopped_by_store(self, disk: DiskId) -> bool:
        """Return True if the store, not the disk's own limit, has no room for a write to it."""
        return self._is_stopped_by_store(self._existing(disk))

    def _is_stopped_by_store(self, path: Path) -> bool:
        quota, group = self._store.quota, self._store.quota.group(path)
        room = quota.room(group)
        return room >= NEARLY_FULL and (
            self._store.is_full() or self._store.growth_room(group, read_tenant(path)) < room
        )

    def too_full(self, disk: DiskId) -> BuilderdError:
        """Return the error for a file that does not fit: on the disk, or in the store."""
        return store_full(self._store) if self.is_stopped_by_store(disk) else self.too_large(disk)

    def too_large(self, disk: DiskId) -> TooLarge:
        """Return the error for a file that does not fit on the disk."""
        return TooLarge(
            f"The file does not fit on the builder's disk of {self.limit(disk) / GB:.3g} GB: delete files in /app, or "
            "ask for a larger disk."
        )

    def delete_needs_space(self, disk: DiskId) -> BuilderdError:
        """Return the error for a folder that cannot be moved aside."""
        if self.is_stopped_by_store(disk):
            return store_full(self._store)
        return TooLarge(
            f"The builder's disk of {self.limit(disk) / GB:.3g} GB is full, and deleting this needs a little room: "
            "delete single files first, or ask for a larger disk."
        )

    def limit(self, disk: DiskId) -> int:
        """Return the disk's limit in bytes."""
        quota = self._store.quota
        return quota.limit_of(quota.group(self._existing(disk)))

    def usage(self, disk: DiskId) -> int:
        """Return the bytes that count against its limit."""
        quota = self._store.quota
        return quota.used(quota.group(self._existing(disk)))

    def space(self, disk: DiskId, scratch: Path | None = None) -> DiskSpace:
        """Return size and use of the disk and its scratch, with writes that are still in memory."""
        return DiskSpace(*self._space_of(self._existing(disk)), *self._space_of(scratch or self._store.scratch / disk))

    def space_if_there(self, disk: str) -> DiskSpace | None:
        """Return size and use of the disk and its scratch; None for a disk that was removed under its app."""
        with suppress(NotFound, FileNotFoundError):
            return self.space(DiskId(disk))
        return None

    def _space_of(self, path: Path) -> tuple[int, int]:
        quota = self._store.quota
        group = quota.group(path)
        return quota.limit_of(group), quota.used(group) + quota.reserved(group)

    def app(self, disk: DiskId) -> Path:
        return self._existing(disk) / "app"

    def home(self, disk: DiskId) -> Path:
        return self._existing(disk) / "home"

    def make_mount_point(self, disk: DiskId, path: str) -> bool:
        """Make an empty folder in ``app`` where there is none; return False where something else has that name.

        False, too, where the folder above it is missing or reached by a link: the mount would follow it.
        """
        with folder(self.app(disk)) as app:
            return make_empty_folder(app, path, APP_OWNER)

    def incoming(self, disk: DiskId) -> Path:
        """Return a folder hidden from the app, for files that will be renamed into ``app``."""
        return _make_private(self._existing(disk) / INCOMING)

    def trash(self, disk: DiskId) -> Path:
        """Return a folder hidden from the app, for deleted folders."""
        return _make_private(self._existing(disk) / TRASH)

    def empty_trash(self, disk: DiskId) -> None:
        """Empty the trash in the background. Until then it counts against the disk's limit."""
        self._background.add(self._path(disk) / TRASH)

    def scratch(self, disk: DiskId, tenant: str = "", own: str | None = None) -> Path:
        """Return an empty folder with ``upper`` and ``work`` in it; its former content is deleted.

        A subvolume, so that it goes in one step. What the disk and it grow by counts for the ``tenant`` from now on.
        ``own`` names that of a further process on the disk.
        """
        path = self._existing(disk)
        if tenant and not read_tenant(path):
            os.setxattr(path, TENANT, tenant.encode())
            self._limit(disk, path, self.limit(disk))
        scratch = self._store.scratch / (own or disk)
        with self._scratch_lock:
            self._store.quota.delete(scratch)
            create_subvolume(scratch)
            self._store.quota.limit(scratch, SCRATCH_BYTES)
            for name in ("upper", "work"):
                (scratch / name).mkdir()
        self._count_scratch(scratch)
        return scratch

    def drop_scratch(self, own: str) -> None:
        """Delete the scratch of a further process. Idempotent."""
        with self._scratch_lock:
            self._store.quota.delete(self._store.scratch / own)

    def collect_scratch(self, used: Collection[str], unused_seconds: float) -> int:
        """Remove scratch folders of ended sandboxes, except of ``used`` disks and those of the last ``unused_seconds``.

        How many. Who starts a sandbox now makes a new one, under the same lock.
        """
        mounted, count = mounted_roots(), 0
        for scratch in self._store.scratch.iterdir():
            # A missing scratch folder went with its disk.
            with self._scratch_lock, suppress(FileNotFoundError):
                recent = time.time() - scratch.stat().st_mtime < unused_seconds
                seen = any(f"/scratch/{scratch.name}/" in f"{root}/" for root in mounted)
                if recent or seen or scratch.name in used:
                    continue
                self._store.quota.delete(scratch)
                count += 1
        return count

    def _existing(self, disk: DiskId) -> Path:
        path = self._path(disk)
        if not path.exists():
            raise NotFound(f"There is no disk {disk}.")
        return path

    def _path(self, disk: DiskId) -> Path:
        if not _NAME.fullmatch(disk):
            raise NotFound(f"{disk!r} is no name of a disk.")
        return self._store.disks / disk


def read_tenant(disk: Path) -> str:
    """Return whose sandboxes were started on the disk, empty before the first; a copy of it has the same."""
    try:
        return os.getxattr(disk, TENANT).decode()
    except OSError as error:
        if error.errno != errno.ENODATA:
            raise
        return ""


def _make_private(path: Path) -> Path:
    path.mkdir(mode=0o700, exist_ok=True)
    return path


def _remove_leftovers(disk: Path) -> None:
    """Remove unfinished uploads, left by a crash or copied into a clone."""
    if (disk / INCOMING).exists():
        with folder(disk / INCOMING) as left:
            clear(left)


class BackgroundDelete:
    """Thread that empties large folders, which may have millions of files, round robin. Thread-safe.

    Each folder is emptied where it lies: on a full disk the kernel refuses a rename.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "background-delete")
        self._closed = threading.Event()
        #: Each folder is queued once, however often it is added: one slice a round for one disk.
        self._queued: set[Path] = set()
        self._lock = threading.Lock()

    def add(self, path: Path) -> None:
        """Queue a folder; ignore it when it is gone by its slice. Returns at once."""
        with self._lock, suppress(RuntimeError):  # closed: the next service finds it
            if path not in self._queued:
                self._thread.submit(self._empty, path)
                self._queued.add(path)

    def close(self) -> None:
        """Leave the rest to the next service. Returns when no folder is open any more. Idempotent."""
        self._closed.set()
        self._thread.shutdown(cancel_futures=True)

    def _empty(self, path: Path) -> None:
        """Empty the folder for one slice, and queue it again for what is left."""
        with self._lock:
            self._queued.remove(path)
        end = time.monotonic() + SLICE_SECONDS
        try:
            with folder(path) as descriptor:
                # An open descriptor keeps the space of a disk that was deleted meanwhile.
                if clear(descriptor, lambda: self._closed.is_set() or time.monotonic() > end or not path.exists()):
                    return
        except FileNotFoundError:
            return
        except OSError as error:
            log.warning("background delete failed, left to the next start path=%s error=%s", path, error)
            return
        self.add(path)
