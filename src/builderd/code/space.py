"""Space for stored code: what all bundles may take together, and one tenant's share of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import NamedTuple
from weakref import WeakValueDictionary

from builderd.code.model import Bundle
from builderd.code.port import Bundles
from builderd.core.errors import NoCapacity, QuotaExceeded
from builderd.core.ids import BuilderId, TenantId
from builderd.core.resources import size_text
from builderd.database.unit_of_work import Store, UnitOfWork
from builderd.versions.model import Version, VersionStatus

#: Part of its own code and the free space together that one of several tenants may take: others always find some.
SHARE = 0.5
RETRY_SECONDS = 60


class SentCode(NamedTuple):
    """Code that a tenant sends: ``replaces`` is the builder that gets it as a new version, None for a new builder."""

    tenant_id: TenantId
    bundle: Bundle
    replaces: BuilderId | None = None


@dataclass(frozen=True, slots=True, eq=False)
class _Grant:
    """Space of one bundle that is being stored. ``more``: its bytes, 0 where it is stored already.

    ``freed``: bundles in whose place it was let through.
    """

    tenant_id: TenantId
    bundle: str
    size: int
    more: int
    freed: Collection[str] = ()


@dataclass(frozen=True, slots=True)
class _Usage:
    """Bundles that a tenant with neighbours has, and those of them that a deployment drops."""

    bundles: Collection[str]
    dropped: Collection[str]
    has_neighbours: bool


class CodeSpace:
    """Bundles that are being stored, in the memory of this process. ``share``: of one tenant, where there are more."""

    def __init__(self, share: float = SHARE) -> None:
        self._share = share
        self._granted: list[_Grant] = []
        #: Calls of one tenant are looked at one after the other, so that they count each other.
        self._looks: WeakValueDictionary[TenantId, asyncio.Lock] = WeakValueDictionary()

    @asynccontextmanager
    async def reserved(
        self, bundles: Bundles, store: Store, sent: SentCode, kept_versions: int
    ) -> AsyncIterator[Collection[str]]:
        """Reserve the space of a bundle that is stored in the block.

        Yields the bundles in whose place it was let through, which nothing uses once it is deployed. Raises
        ``NoCapacity`` when there is no room, ``QuotaExceeded`` when the tenant's share is used up.

        A bundle that is stored already takes no space, and counts in full for each tenant that has it.
        """
        async with self._looks.setdefault(sent.tenant_id, asyncio.Lock()):
            grant = await self._grant(bundles, store, sent, kept_versions)
        try:
            yield grant.freed
        finally:
            self._granted.remove(grant)

    async def _grant(self, bundles: Bundles, store: Store, sent: SentCode, kept_versions: int) -> _Grant:
        # What is granted now counts, although it may be stored and released while this call looks.
        before, size = tuple(self._granted), sent.bundle.packed_size
        is_stored = await bundles.stored_bytes([sent.bundle.hash]) > 0
        grant = _Grant(sent.tenant_id, sent.bundle.hash, size, 0 if is_stored else size)
        space = await bundles.space()
        # Whatever a tenant has, it is within its share then.
        if space.used + self._ahead(before, grant) > self._share * (space.used + space.free):
            usage = await store.read(lambda uow: _usage_of(uow, sent, kept_versions))
            stored, dropped = await bundles.stored_bytes(usage.bundles), await bundles.stored_bytes(usage.dropped)
            # What was granted and released before is in the space.
            now, free = tuple(self._granted), (await bundles.space()).free
            if grant.more and self._ahead(now, grant) > free:
                raise NoCapacity(
                    f"There is no room for {size_text(size)} of code: {size_text(free)} are left for the code of all "
                    f"builders. {space.remedy}",
                    retry_after=RETRY_SECONDS,
                )
            own = [one for one in before if one.tenant_id == sent.tenant_id]
            if usage.has_neighbours and not self._is_within_share(grant, own, usage, stored, free):
                taken = {bundle for one in own for bundle in one.freed}
                if size > dropped or not taken.isdisjoint(usage.dropped):
                    raise QuotaExceeded(
                        f"Your builders have {size_text(stored)} of stored code, {size_text(free)} are free, and this "
                        f"takes {size_text(size)}: one tenant's code may have {self._share:.0%} of its own and the "
                        "free space together. Delete builders or backups that you do not need, or keep less in the "
                        "code; the operator sets the share (limits.code_share)."
                    )
                grant = replace(grant, freed=usage.dropped)
        self._granted.append(grant)
        return grant

    def _is_within_share(self, grant: _Grant, own: Sequence[_Grant], usage: _Usage, stored: int, free: int) -> bool:
        """Return True if the tenant has its share with the bundle, or had the bundle before."""
        if grant.bundle in usage.bundles:
            return True
        coming = {one.bundle: one for one in (*own, grant) if one.bundle not in usage.bundles}.values()
        # An upload lies in its place already: what it takes is not free any more.
        placed = sum(one.size - one.more for one in coming)
        return stored + sum(one.size for one in coming) <= self._share * (stored + placed + free)

    def _ahead(self, before: Iterable[_Grant], grant: _Grant) -> int:
        """Return the bytes that are being stored, of all tenants, this bundle's among them."""
        return sum({one.bundle: one.more for one in (*before, *self._granted, grant)}.values())


def old_versions(uow: UnitOfWork, builder_id: BuilderId, current: int, kept: int) -> Collection[Version]:
    """Return the versions beyond the last ``kept`` that are not dropped yet, never the current one."""
    found = uow.versions.list(builder_id)[kept:]
    return [one for one in found if one.number != current and one.status is not VersionStatus.DROPPED]


def _usage_of(uow: UnitOfWork, sent: SentCode, kept_versions: int) -> _Usage:
    if not uow.tenants.are_several():
        return _Usage((), (), has_neighbours=False)
    bundles = uow.versions.bundles_of_tenant(sent.tenant_id)
    builder = uow.builders.get(sent.replaces) if sent.replaces is not None else None
    if builder is None or builder.tenant_id != sent.tenant_id:
        return _Usage(bundles, (), has_neighbours=True)
    # The new version is one of those that are kept.
    old = old_versions(uow, builder.id, builder.version, kept_versions - 1)
    left = uow.versions.bundles_of_tenant(sent.tenant_id, builder.id, [one.number for one in old])
    return _Usage(bundles, frozenset(bundles).difference(left), has_neighbours=True)
