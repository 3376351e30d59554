"""Watch over a store: stops apps from writing before a write fails, and says what is wrong with the store.

Promises are checked when they are made. Later the host may fill up from elsewhere, or metadata may take more than was
counted. A file system that fails to write its metadata is read-only until every app on it was stopped, so apps get
"disk quota exceeded" instead while there is still some space left: by the limit above all limits (``quotas``). The
host's blocks behind metadata are allocated ahead.
"""

from __future__ import annotations

import logging
import os
import subprocess
import threading
from pathlib import Path

from builderd.adapters.engines.oci.storage.backing import free_bytes
from builderd.adapters.engines.oci.storage.quotas import Quota
from builderd.adapters.engines.oci.storage.space_reservations import SpaceReservations, StorageDevice
from builderd.adapters.engines.oci.storage.subvolumes import folder
from builderd.domain.resources import GB
from builderd.linux.syscalls import sync_file_system

log = logging.getLogger(__name__)

INTERVAL = 1.0
#: A limit is changed when it is off by more than this: each change is a write.
STEP = 16 << 20

READ_ONLY = (
    "The store at {root} is read-only: the kernel stopped writing to it after a write of its own had failed, as when "
    "the host's disk is full (see dmesg). Free space on the host, then run 'builderd down' and 'builderd serve': apps "
    "are started again."
)
FULL_HOST = (
    "Apps cannot write: only {free:.1f} GB are free on the host's file system of {image}, of which {floor:g} GB are to "
    "stay free (store.floor). Free space on the host; apps go on by themselves."
)
FULL_STORE = (
    "Apps cannot write: the store at {root} is full. Delete builders, enlarge it (docs/storage.md), or gather free "
    "space from half-empty chunks: btrfs balance start -dusage=60 -musage=60 {root}"
)


class StoreWatch:
    def __init__(self, device: StorageDevice, quota: Quota, reservations: SpaceReservations) -> None:
        self._device = device
        self._quota = quota
        self._reservations = reservations
        self._closed = threading.Event()
        self._failure_reason: str | None = None
        #: The last error, so that one that stays is logged once.
        self._failure = ""
        #: Bytes of metadata chunks for which the host's space was allocated.
        self._allocated = 0
        self._thread = threading.Thread(target=self._run, name="store-watch", daemon=True)

    def start(self) -> None:
        """Check once, then every second."""
        self._try()
        self._thread.start()

    def close(self) -> None:
        """Stop the watch. Idempotent."""
        self._closed.set()
        if self._thread.is_alive():
            self._thread.join()

    def failure_reason(self) -> str | None:
        """Return why apps cannot write and what to do; None when they can."""
        return self._failure_reason

    def is_full(self) -> bool:
        """Return True when apps cannot write for want of space, in the store or on its host, and for nothing else."""
        return self._failure_reason is not None and not self._device.is_read_only()

    def _run(self) -> None:
        while not self._closed.wait(INTERVAL):
            self._try()

    def _try(self) -> None:
        try:
            self.check()
            self._failure = ""
        except OSError as error:
            if str(error) != self._failure:
                log.warning("store watch failed, retrying in 1 s root=%s error=%s", self._device.root, error)
            self._failure = str(error)

    def check(self) -> None:
        """Check the store and its host, and adapt the limit."""
        writable = self._device.writable()
        failure_reason = find_failure(self._device)
        if failure_reason != self._failure_reason:
            if failure_reason:
                log.error("apps cannot write to the store reason=%s", failure_reason)
            else:
                log.info("apps can write to the store again")
        self._failure_reason = failure_reason
        if not self._device.is_read_only():
            self._limit(writable)
            self._allocate()

    def _limit(self, writable: int) -> None:
        """Limit all apps to what can be written, when that is less than what is reserved."""
        before = self._quota.limit_of(self._quota.total)
        if writable >= self._reservations.promised():
            self._quota.limit_total(None)
            return
        limit = max(1, self._quota.used(self._quota.total) + writable)
        if not before or abs(limit - before) > STEP or (limit < before and not writable):
            self._quota.limit_total(limit)
        if not writable and (not before or before > limit):
            # Dirty pages of the apps still fit now.
            with folder(self._device.root) as root:
                sync_file_system(root)

    def _allocate(self) -> None:
        """Allocate host space for the metadata; trimmed space is allocated again while the host is short."""
        device = self._device
        if device.image is None:
            return
        total = device.metadata().total
        if total != self._allocated or device.is_host_short():
            allocate_metadata(device.root, device.image)
            self._allocated = total


def find_failure(device: StorageDevice) -> str | None:
    """Return why apps cannot write and what to do; None when they can."""
    if device.is_read_only():
        return READ_ONLY.format(root=device.root)
    if device.writable():
        return None
    if device.image is None or not device.is_host_full():
        return FULL_STORE.format(root=device.root)
    free = free_bytes(device.image.parent) / GB
    return FULL_HOST.format(free=free, image=device.image, floor=device.floor_bytes / GB)


def allocate_metadata(root: Path, image: Path) -> None:
    """Allocate the host's blocks behind all metadata of a store in a sparse file, before they are written to.

    Content is kept. Raises ``OSError`` (ENOSPC).
    """
    argv = ("btrfs", "inspect-internal", "list-chunks", "--raw", str(root))
    listed = subprocess.run(argv, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL).stdout
    rows = [line.split() for line in listed.splitlines()]
    file = os.open(image, os.O_RDWR | os.O_CLOEXEC)
    try:
        for _device, _number, kind, start, length, *_ in (row for row in rows if len(row) > 4):
            if kind.startswith(("System/", "Metadata/")):
                os.posix_fallocate(file, int(start), int(length))
    finally:
        os.close(file)
