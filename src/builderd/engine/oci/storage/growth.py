"""Growth of disks on a store that is nearly full: which tenants and disks get how much more, decided without any I/O.

What is promised may exceed the store, what is written may not. So no tenant may write so much at once that the others
have no room left, and below a tenth of the store those that grow fastest get no more. A disk can allocate all that its
limit allows within a quarter of a second (``fallocate``), so that no look comes in time: the limits are set ahead.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

#: Part of the store below which new disks are refused and growth is limited.
LEAST_SHARE = 0.1
#: Limits are given back above so many times that.
RELEASE = 1.25
#: Part of the rest that all together may grow within ``MEMORY_SECONDS`` without a limit.
CALM_SHARE = 0.1
MEMORY_SECONDS = 60.0
#: What a disk that grew fastest may still write, in bytes, for its log and the like; less in a small store.
LITTLE = 16 << 20


@dataclass(frozen=True, slots=True)
class Grower:
    """Bytes that a disk with its scratch, or a tenant with all disks and builds, takes ``now``, dirty pages included.

    ``before`` is the average of the last minute, ``limit`` the present one, None without. Of a tenant, ``promised`` is
    what its disks' own limits let it write yet.
    """

    now: int
    before: float
    limit: int | None = None
    promised: int = 0
    disks: Mapping[int, Grower] = field(default_factory=dict)

    @property
    def growth(self) -> float:
        return max(0.0, self.now - self.before)

    def lowered(self, more: int) -> int:
        """Return a limit that lets it grow by ``more`` bytes, and by no more than its present one."""
        limit = max(1, self.now + more)
        return limit if self.limit is None else min(self.limit, limit)


def limit_growth(tenants: Mapping[int, Grower], writable: int, total: int) -> Mapping[int, int | None]:
    """Return the limit in bytes, None for none, of each tenant's and each disk's group.

    ``writable`` of ``total`` bytes of the store can be written now. While there is room, a tenant may write all but
    half a tenth of the store before the next look. Below a tenth, limits are only lowered: each tenant may take half
    the rest; those that grew most, so that the growth of the others in a minute is a tenth of the rest, take a tenth;
    and of their disks, those that grew most get next to nothing. The limits themselves remember who is limited.
    """
    tenth = int(total * LEAST_SHARE)
    most = max(writable - tenth // 2, writable // 2)
    disks = {group: disk for tenant in tenants.values() for group, disk in tenant.disks.items()}
    if writable >= tenth * RELEASE:
        ahead = {group: None if one.promised <= most else one.now + most for group, one in tenants.items()}
        return {**ahead, **dict.fromkeys(disks)}
    limits = {group: disk.limit for group, disk in disks.items()}
    limits |= {group: tenant.lowered(most) for group, tenant in tenants.items()}
    if writable < tenth:
        calm = int(writable * CALM_SHARE)
        for group in _fastest(tenants, calm):
            tenant = tenants[group]
            fast = list(_fastest(tenant.disks, calm // 2))
            for disk in fast:
                limits[disk] = disks[disk].lowered(min(LITTLE, calm // (2 * len(fast))))
            # It may have used up what it had before the look: so its other disks get their share, once.
            is_first = fast and not any(disk.limit for disk in tenant.disks.values())
            limits[group] = tenant.now + calm if is_first else tenant.lowered(calm)
    return limits


def _fastest(growers: Mapping[int, Grower], calm: int) -> Iterator[int]:
    """Yield those that grew most, until the others together grew by ``calm`` bytes at most."""
    rest = sum(one.growth for one in growers.values())
    for group, one in sorted(growers.items(), key=lambda item: -item[1].growth):
        if rest <= calm:
            return
        rest -= one.growth
        yield group
