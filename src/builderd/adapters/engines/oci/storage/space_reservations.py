"""Reservations of the store's space: no more is reserved than there is, since a full store stops every app.

A claim is the limit of something that may grow: a disk, the package cache, a layer being made. The part of a claim that
is not used yet must fit into the free space above a floor. Used space is not free in any case.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, replace

from builderd.adapters.engines.oci.storage.quotas import Quota
from builderd.adapters.engines.oci.storage.storage_device import StorageDevice
from builderd.domain.errors import NoCapacity
from builderd.domain.resources import GB

#: A claim of flexible size takes at most this share of the free space, so that others can be made beside it.
MAX_SHARE = 0.25
#: Limit of an app's writes outside of its disk, in bytes: each disk claims it beside its own size.
SCRATCH_BYTES = 256 << 20
#: How long space is held for a disk whose code is still reviewed, installed and built, in seconds.
HOLD_SECONDS = 3600.0


@dataclass(frozen=True, slots=True)
class Claim:
    """Claim of ``size`` bytes; the quota groups ``group`` and ``scratch`` count what is used of it.

    ``group`` is None before it is known, ``scratch`` for claims other than those of disks, and before a first start.
    ``ends_at`` (of ``time.monotonic``): it ends by itself then.
    """

    size: int
    group: int | None = None
    scratch: int | None = None
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
            self._claims[name] = Claim(size_bytes, known.group, known.scratch)

    def hold(self, name: str, size_bytes: int) -> None:
        """Reserve space for what will be claimed under this name within ``HOLD_SECONDS``. Raises ``NoCapacity``."""
        with self._lock:
            if name not in self._claims:
                self._check(size_bytes)
                self._claims[name] = Claim(size_bytes, ends_at=time.monotonic() + HOLD_SECONDS)

    def claim_some(self, name: str, least: int, most: int) -> int:
        """Reserve a share of the free space, ``least`` to ``most`` bytes; return its size. Raises ``NoCapacity``."""
        with self._lock:
            available = int(self._device.free() * self._overcommit) - self.promised()
            size = max(least, min(most, int(available * MAX_SHARE)))
            self._check(size)
            self._claims[name] = Claim(size)
            return size

    def adopt(self, name: str, size_bytes: int, group: int) -> None:
        """Record a claim that exists already, and the quota group that counts its use."""
        with self._lock:
            known = self._claims.get(name, Claim(0))
            self._claims[name] = Claim(size_bytes, group, known.scratch)

    def count_scratch(self, name: str, group: int) -> None:
        """Record the quota group that counts the use of the scratch, which a disk's claim includes."""
        with self._lock:
            if claim := self._claims.get(name):
                self._claims[name] = replace(claim, scratch=group)

    def release(self, name: str) -> None:
        with self._lock:
            self._claims.pop(name, None)

    def writable(self) -> int:
        """Return the bytes that can be written now, reserved or not."""
        return self._device.writable()

    def _drop_ended(self) -> None:
        now = time.monotonic()
        ended = [name for name, claim in self._claims.items() if claim.ends_at is not None and claim.ends_at < now]
        for name in ended:
            del self._claims[name]

    def _check(self, more: int) -> None:
        self._drop_ended()
        available = self._device.free() * self._overcommit
        # The usual case needs no quota lookups: all claims would fit even if nothing of them were used yet.
        if more <= 0 or sum(claim.size for claim in self._claims.values()) + more <= available:
            return
        promised = self.promised()
        if promised + more > available:
            raise self._full(more, promised)

    def promised(self) -> int:
        """Return the bytes that claims allow to be written and that are not used yet."""
        return sum(max(0, claim.size - self._used(claim)) for claim in tuple(self._claims.values()))

    def backed(self) -> int:
        """Return the bytes of ``promised`` that need free space, given the overcommit."""
        return int(self.promised() / self._overcommit)

    def _used(self, claim: Claim) -> int:
        return sum(self._quota.used(group) for group in (claim.group, claim.scratch) if group is not None)

    def _full(self, more: int, promised: int) -> NoCapacity:
        free = max(self._device.free(), 0)
        fits = (free * self._overcommit - promised - SCRATCH_BYTES) / GB
        smaller = f"Ask for a disk of at most {int(fits * 10) / 10:g} GB (resources.disk), or delete"
        cure = (
            f"{smaller if fits >= 1 else 'Delete'} a builder that is not needed: stopping one "
            "frees no disk. The operator can enlarge the store (store.size, or its block device; then a restart)."
        )
        if self._device.is_limited_by_host():
            cure = (
                f"The host's file system of {self._device.image} is too full: its operator frees space there "
                f"({self._device.floor_bytes / GB:g} GB stay free, store.floor). Then try again."
            )
        return NoCapacity(
            f"The store has no room for {more / GB:.3g} GB more: {free / GB:.1f} GB are free, of which "
            f"{promised / GB:.1f} GB are promised to disks, layers and caches (each disk needs {SCRATCH_BYTES / GB:g} "
            f"GB beside its size). {cure}",
            data={"wanted": more, "free": free, "promised": promised},
            retry_after=60,
        )
