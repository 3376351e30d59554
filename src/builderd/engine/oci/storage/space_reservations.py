"""Reservations of the store's space, and the watch over it, since a full store stops every app.

A claim is the limit of something that may grow: a disk, the package cache, a layer being made. The part of a claim that
is not used yet must fit into the free space above a floor, with an overcommit of 2 into that and the store's size once
more. Used space is not free in any case.

Reservations are checked when they are made; later apps may write what was promised twice, the host may fill up from
elsewhere, or metadata may take more than was counted. A file system that fails to write its metadata is read-only until
every app on it was stopped, so the watch gives apps the error EDQUOT while some space is left: by the limit above all
limits (``quotas``), and before that by limits of the growth of those that grow most (``growth``).
"""

from __future__ import annotations

import logging
import math
import os
import subprocess
import threading
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from builderd.core.errors import NoCapacity
from builderd.core.resources import GB, Resources
from builderd.engine.oci.storage.backing import free_bytes, total_bytes
from builderd.engine.oci.storage.growth import LEAST_SHARE, MEMORY_SECONDS, RELEASE, Grower, limit_growth
from builderd.engine.oci.storage.quotas import Quota
from builderd.engine.oci.storage.subvolumes import file_system_uuid, folder
from builderd.linux.syscalls import sync_file_system

#: A claim of flexible size takes at most this share of the free space, so that others can be made beside it.
MAX_SHARE = 0.25
#: Limit of an app's writes outside of its disk, in bytes: each disk claims it beside its own size.
SCRATCH_BYTES = 256 << 20
#: How long space is reserved for a disk whose code is still reviewed, installed and built, in seconds.
RESERVATION_SECONDS = 3600.0


@dataclass(frozen=True, slots=True)
class Claim:
    """Claim of ``size`` bytes; the quota groups ``group`` and ``scratch`` count what is used of it.

    ``group`` is None before it is known, ``scratch`` for claims other than those of disks, and before a first start.
    ``tenant``: whose growth it is, empty before a disk's first start. ``ends_at`` (of ``time.monotonic``): it ends by
    itself then.
    """

    size: int
    group: int | None = None
    scratch: int | None = None
    tenant: str = ""
    ends_at: float | None = None


class SpaceReservations:
    """Claims on the store's space by name. ``overcommit`` 1 reserves each byte once, 2 twice. Thread-safe."""

    def __init__(self, device: StorageDevice, quota: Quota, overcommit: float) -> None:
        self._device = device
        self._quota = quota
        self._overcommit = overcommit
        self._claims: dict[str, Claim] = {}
        self._lock = threading.Lock()

    def capacity(self) -> int:
        """Return the bytes that can be reserved in all."""
        return int(self._device.total() * self._overcommit)

    def claim(self, name: str, size_bytes: int) -> None:
        """Reserve space under a name, or change its size. Raises ``NoCapacity`` with the amounts in bytes."""
        with self._lock:
            self._drop_ended()
            known = self._claims.get(name, Claim(0))
            self._check(size_bytes - known.size)
            self._claims[name] = replace(known, size=size_bytes, ends_at=None)

    def reserve(self, name: str, size_bytes: int) -> None:
        """Reserve space for what will be claimed under this name within an hour.

        Raises ``NoCapacity``, also when less than a tenth of the store is free.
        """
        with self._lock:
            if name not in self._claims:
                self._check_free()
                self._check(size_bytes)
                self._claims[name] = Claim(size_bytes, ends_at=time.monotonic() + RESERVATION_SECONDS)

    def claim_some(self, name: str, least: int, most: int) -> int:
        """Reserve a share of the free space, ``least`` to ``most`` bytes; return its size.

        Raises ``NoCapacity``, also when less than a tenth of the store is free.
        """
        with self._lock:
            self._check_free()
            available = min(self._available() - self.promised(), self._device.free())
            size = max(least, min(most, int(available * MAX_SHARE)))
            self._check(size)
            self._claims[name] = Claim(size)
            return size

    def adopt(self, name: str, size_bytes: int, group: int, tenant: str = "") -> None:
        """Record a claim that exists already, the quota group that counts its use, and whose it is, if it is known."""
        with self._lock:
            known = self._claims.get(name, Claim(0))
            self._claims[name] = Claim(size_bytes, group, known.scratch, tenant or known.tenant)
        if tenant:
            self._quota.count_growth(group, group, tenant)

    def count_scratch(self, name: str, group: int) -> None:
        """Record the quota group that counts the use of the scratch, which a disk's claim includes."""
        with self._lock:
            claim = self._claims.get(name)
            if claim is not None:
                self._claims[name] = replace(claim, scratch=group)
        if claim is not None and claim.tenant and claim.group is not None:
            self._quota.count_growth(group, claim.group, claim.tenant)

    def release(self, name: str) -> None:
        with self._lock:
            self._claims.pop(name, None)

    def writable(self) -> int:
        """Return the bytes that can be written now, reserved or not."""
        return self._device.writable()

    def disks_left(self) -> int:
        """Return how many more disks of the default size may be reserved."""
        is_refused = self._device.writable() < self._device.total() * LEAST_SHARE
        return 0 if is_refused else disks_in(self._available() - self.promised())

    def is_nearly_full(self) -> bool:
        """Return True while growth may be limited."""
        return self._device.writable() < self._device.total() * LEAST_SHARE * RELEASE

    def _drop_ended(self) -> None:
        now = time.monotonic()
        ended = [name for name, claim in self._claims.items() if claim.ends_at is not None and claim.ends_at < now]
        for name in ended:
            del self._claims[name]

    def _check(self, more: int) -> None:
        self._drop_ended()
        available = self._available()
        # The usual case needs no quota lookups: all claims would fit even if nothing of them were used yet.
        if more <= 0 or sum(claim.size for claim in self._claims.values()) + more <= available:
            return
        promised = self.promised()
        if promised + more > available:
            raise self._full(more, promised)

    def _available(self) -> int:
        """Return the bytes that may be promised at a time beyond what is used: what is free, and the overcommit."""
        return self._device.free() + int((self._overcommit - 1) * self._device.total())

    def _check_free(self) -> None:
        free, total = self._device.writable(), self._device.total()
        if free < total * LEAST_SHARE:
            raise self._refusal(
                f"The store is nearly full: {free / GB:.1f} of {total / GB:.1f} GB can still be written, and a tenth "
                f"({total * LEAST_SHARE / GB:.1f} GB) is kept for the apps that are there.",
                "Delete files of apps, or a builder that is not needed",
                free,
            )

    def promised(self) -> int:
        """Return the bytes that claims allow to be written and that are not used yet."""
        return sum(left for _, left in self.unwritten())

    def unwritten(self) -> Sequence[tuple[Claim, int]]:
        """Return all claims, each with the bytes of it that are not used yet."""
        return [(claim, max(0, claim.size - self._used(claim))) for claim in tuple(self._claims.values())]

    def _used(self, claim: Claim) -> int:
        return sum(self._quota.used(group) for group in (claim.group, claim.scratch) if group is not None)

    def _full(self, more: int, promised: int) -> NoCapacity:
        free, most = max(self._device.free(), 0), max(self._available(), 0)
        fits = (most - promised - SCRATCH_BYTES) / GB
        smaller = f"Ask for a disk of at most {int(fits * 10) / 10:g} GB (resources.disk), or delete"
        return self._refusal(
            f"The store has no room for {more / GB:.3g} GB more: {promised / GB:.1f} GB are promised to disks, layers "
            f"and caches, of {most / GB:.1f} GB that may be (store.overcommit, {self._overcommit:g}; each disk needs "
            f"{SCRATCH_BYTES / GB:g} GB beside its size), and {free / GB:.1f} GB are free.",
            f"{smaller if fits >= 1 else 'Delete'} a builder that is not needed",
            free,
            wanted=more,
            promised=promised,
        )

    def _refusal(self, why: str, help_: str, free: int, **data: int) -> NoCapacity:
        cure = (
            f"{help_}: stopping one frees no disk. The operator can enlarge the store (store.size, or its block "
            "device; then a restart)."
        )
        if self._device.is_limited_by_host():
            cure = (
                f"The host's file system of {self._device.image} is too full: its operator frees space there "
                f"({self._device.floor_bytes / GB:g} GB stay free, store.floor). Then try again."
            )
        return NoCapacity(f"{why} {cure}", data={**data, "free": free}, retry_after=60)


def disks_in(size: float) -> int:
    """Return how many disks of the default size may be promised in so many bytes."""
    return max(0, int(size // (Resources().disk_bytes + SCRATCH_BYTES)))


#: Never reserved, the greater of both. btrfs cannot delete when it is almost full; and its extent records count against
#: no quota: 4 % where all is written in pieces of 4 kB.
RESERVE, RESERVE_SHARE = GB // 2, 0.05
#: Apps are stopped from writing when less than this is left of the host's file system, however low the floor is.
LEAST = 128 << 20
#: Bytes of device that one byte takes, by profile. Parity takes less and counts as a second copy.
_COPIES = {"single": 1, "raid0": 1, "raid1c3": 3, "raid1c4": 4}
_OTHER_COPIES = 2


@dataclass(frozen=True, slots=True)
class Chunks:
    """Parts of the device that btrfs keeps for data or for metadata: bytes of content, and copies of each byte.

    A byte that is free in a chunk of one kind is of no use to the other.
    """

    total: int
    used: int
    copies: int

    @property
    def free(self) -> int:
        return self.total - self.used


def read_chunks(root: Path, kind: Literal["data", "metadata"]) -> Chunks:
    """Read the chunks of a kind, of the file system that ``root`` lies on, from /sys."""
    folder = Path("/sys/fs/btrfs", file_system_uuid(root), "allocation", kind)
    profiles = [path.parent.name for path in folder.glob("*/total_bytes") if int(path.read_text())]
    copies = max((_COPIES.get(profile, _OTHER_COPIES) for profile in profiles), default=1)
    return Chunks(int((folder / "total_bytes").read_text()), int((folder / "bytes_used").read_text()), copies)


@dataclass(frozen=True, slots=True)
class StorageDevice:
    """Free and used space below the store.

    ``root`` is its mount point, ``image`` its sparse file, which shares a file system with the rest of the host, None
    on a device or folder of its own; ``floor_bytes`` stay free on the host.
    """

    root: Path
    image: Path | None
    floor_bytes: int

    def free(self) -> int:
        """Return the bytes that can be written above the floor; negative when less than the floor is free.

        Any byte may become metadata, so each is counted with the number of metadata copies.
        """
        return int(min(self._inside(), self._on_host()) / self.metadata_ratio())

    def metadata_ratio(self) -> float:
        """Return the device bytes of one byte of metadata divided by those of data: 2 with mkfs.btrfs' defaults."""
        return max(1.0, self.metadata().copies / read_chunks(self.root, "data").copies)

    def metadata(self) -> Chunks:
        return read_chunks(self.root, "metadata")

    def is_limited_by_host(self) -> bool:
        """Return True when the host's file system, not the store's size, limits what is free."""
        return self._on_host() < self._inside()

    def _inside(self) -> int:
        return free_bytes(self.root) - self.reserve() - (self.floor_bytes if self.image is None else 0)

    def _on_host(self) -> float:
        """Return the bytes that can be written above the host's floor, with what the sparse file has allocated.

        Free metadata space is allocated as well, but no data goes there.
        """
        if self.image is None:
            return math.inf
        metadata = self.metadata()
        unused = self.image.stat().st_blocks * 512 - self._used() - metadata.free * metadata.copies
        return free_bytes(self.image.parent) - self.floor_bytes + max(0, unused)

    def reserve(self) -> int:
        """Return the bytes of the store that are never reserved."""
        return max(RESERVE, int(total_bytes(self.root) * RESERVE_SHARE))

    def writable(self) -> int:
        """Return the bytes that apps may write now.

        When reservations turn out too large, apps may also use half of the reserve, and no more.
        """
        inside = free_bytes(self.root) - self.reserve() // 2
        host = inside if self.image is None else free_bytes(self.image.parent) - self._host_least()
        return max(0, min(inside, host))

    def is_host_full(self) -> bool:
        """Return True when the host's file system, not the store itself, is out of space."""
        return self.image is not None and free_bytes(self.image.parent) <= self._host_least()

    def is_host_short(self) -> bool:
        """Return True when the host's file system may soon be full."""
        return self.image is not None and free_bytes(self.image.parent) < max(2 * LEAST, self.floor_bytes)

    def _host_least(self) -> int:
        return max(LEAST, self.floor_bytes // 2)

    def is_read_only(self) -> bool:
        """Return True when the kernel made the file system read-only, as after a failed metadata write."""
        return bool(os.statvfs(self.root).f_flag & os.ST_RDONLY)

    def total(self) -> int:
        """Return the bytes that an empty store has above the floor."""
        return max(0, self.free() + self._used())

    def _used(self) -> int:
        status = os.statvfs(self.root)
        return (status.f_blocks - status.f_bfree) * status.f_frsize


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
        #: Average use of each growing group in the last minute, in bytes.
        self._before: dict[int, float] = {}
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
            claims = self._reservations.unwritten()
            self._limit(writable, sum(left for _, left in claims))
            self._limit_growth(max(0, writable - self._quota.reserved(self._quota.total)), claims)
            self._allocate()

    def _limit_growth(self, writable: int, claims: Sequence[tuple[Claim, int]]) -> None:
        """Limit the growth of tenants and disks, or give it back; the limits are kept by the store itself."""
        quota, disks = self._quota, defaultdict[str, dict[int, int]](dict)
        for claim, left in claims:
            if claim.tenant and claim.group is not None:
                disks[claim.tenant][quota.disk_growth(claim.group)] = left
        tenants = {
            group: replace(
                self._grower(group), promised=sum(own.values()), disks={disk: self._grower(disk) for disk in own}
            )
            for group, own in ((quota.tenant_growth(tenant), own) for tenant, own in disks.items())
        }
        limits = limit_growth(tenants, writable, self._device.total())
        for group, limit in limits.items():
            present = quota.limit_of(group)
            if bool(limit) is not bool(present) or abs((limit or 0) - present) > min(STEP, writable // 16):
                quota.limit_together(group, limit)
                if limit and not present and (tenant := next((one for one, own in disks.items() if group in own), "")):
                    log.warning(
                        "growth limited tenant=%s group=%d bytes=%d writable=%d", tenant, group, limit, writable
                    )
        self._before = {group: now for group, now in self._before.items() if group in limits}

    def _grower(self, group: int) -> Grower:
        now = self._quota.used(group) + self._quota.reserved(group)
        before = self._before.setdefault(group, now)
        self._before[group] += (now - before) * INTERVAL / MEMORY_SECONDS
        return Grower(now, before, self._quota.limit_of(group) or None)

    def _limit(self, writable: int, promised: int) -> None:
        """Limit all apps to what can be written, when that is less than what is reserved."""
        before = self._quota.limit_of(self._quota.total)
        if writable >= promised:
            self._quota.limit_together(self._quota.total, None)
            return
        limit = max(1, self._quota.used(self._quota.total) + writable)
        if not before or abs(limit - before) > STEP or (limit < before and not writable):
            self._quota.limit_together(self._quota.total, limit)
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
