"""Limits set by the operator, for all and for each tenant; retention and start times; queues of tenants' calls."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import AbstractContextManager, asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from decimal import Decimal
from weakref import WeakValueDictionary

from builderd.core.clock import Clock
from builderd.core.errors import RateLimited
from builderd.core.ids import TenantId
from builderd.core.loops import counted
from builderd.core.resources import Capacity, Limit, Resources
from builderd.engine.port import Engine
from builderd.money.model import Cap, lowest
from builderd.tokens.model import Tenant
from builderd.versions.model import Isolation, VersionSettings

#: Multiple of its timeout that a start gets while the machine is busy.
BUSY_FACTOR = 2


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits set by the operator. Times in seconds, sizes in bytes."""

    maximum: Resources = field(default_factory=lambda: Resources(cpu=8, memory=16, disk=100))
    default_isolation: Isolation = Isolation.STANDARD
    start_timeout: float = 60
    #: The most that a version may ask for as its own.
    max_start_timeout: float = 600
    #: Seconds that a version's build command may take.
    build_timeout: float = 900
    #: Seconds that a version's release command may take.
    release_timeout: float = 120
    handover_timeout: float = 12
    kept_versions: int = 10
    stop_grace: float = 10
    exec_output: int = 10_000_000
    #: Seconds without a visit or CPU use before a builder that may idle is frozen; 0: never.
    freeze_after: float = 60
    #: Share of one CPU up to which a sandbox counts as idle.
    quiet_cpu: float = 0.02
    #: Whether a report is made of each version in the background, once its gate has judged it.
    qa_report: bool = True

    def start_seconds(self, settings: VersionSettings) -> float:
        """Return how long a version may take to listen; a bound that was lowered since limits it too."""
        return min(settings.start_timeout, self.max_start_timeout) if settings.start_timeout else self.start_timeout


@dataclass(frozen=True, slots=True)
class RetentionPolicy:
    """Retention times of unused layers, events, webhook deliveries, and disks of builders that never came up."""

    layers: timedelta = timedelta(days=30)
    events: timedelta = timedelta(days=90)
    deliveries: timedelta = timedelta(days=30)
    failed_disks: timedelta = timedelta(days=1)


class StartLimit:
    """Time limit of a start: ``timeout`` seconds that began ``before`` seconds ago, doubled on a busy machine."""

    def __init__(self, engine: Engine, clock: Clock, timeout: float, before: float = 0.0) -> None:
        self._engine, self._clock, self._timeout = engine, clock, timeout
        self._begun = clock.passed() - before

    @property
    def seconds(self) -> float:
        """Return the seconds since the beginning."""
        return self._clock.passed() - self._begun

    @property
    def left(self) -> float:
        """Return the seconds that are left, as busy as the machine is now; 0 or less: it is over."""
        return self._timeout * (BUSY_FACTOR if self._engine.is_busy() else 1) - self.seconds


@dataclass(frozen=True, slots=True)
class TenantLimit:
    """Limits of one tenant. ``monthly`` caps its builders together, ``builder_monthly`` each of them; None: no cap.

    ``layers``: GB that its dependency layers may take; None: the default share of the store. ``domains``: custom
    domains of all its builders.
    """

    quota: Limit = field(default_factory=Limit)
    monthly: Decimal | None = None
    builder_monthly: Decimal | None = None
    layers: float | None = None
    domains: int | None = None

    def cap_of(self, tenant: Tenant) -> Cap | None:
        """Return the lower of the operator's and the tenant's cap on all builders together. None: no cap."""
        amount = lowest(self.monthly, tenant.spending_cap)
        return None if amount is None else Cap(amount, of_tenant=True)

    def cap_of_builder(self, own: Decimal | None) -> Cap | None:
        """Return the lower of the operator's cap for a builder and ``own``, which the tenant set. None: no cap."""
        amount = lowest(self.builder_monthly, own)
        return None if amount is None else Cap(amount, of_tenant=False)


@dataclass(frozen=True, slots=True)
class TenantLimits:
    """Limits of all tenants. ``tenants``: those with limits of their own, by name.

    ``cpu_factor`` and ``memory_factor``: how many times the machine's resources running builders may reserve.
    """

    default: TenantLimit = field(default_factory=TenantLimit)
    tenants: Mapping[str, TenantLimit] = field(default_factory=dict)
    cpu_factor: float = 16
    memory_factor: float = 4

    def of(self, tenant: Tenant) -> TenantLimit:
        return self.tenants.get(tenant.name, self.default)

    def of_machine(self, capacity: Capacity) -> Limit:
        """Return how much of an engine's capacity may be promised; that of its disk is the store's to multiply."""
        return Limit(None, None, capacity.cpu * self.cpu_factor, capacity.memory * self.memory_factor, capacity.disk)


#: Calls of one tenant that may wait in one queue.
MAX_WAITING = 100


class TenantQueue:
    """``places`` calls of each tenant work at a time. ``what``: plural name of the calls, for the error."""

    def __init__(self, places: int, what: str) -> None:
        self._places = places
        self._what = what
        self._semaphores: WeakValueDictionary[TenantId, asyncio.Semaphore] = WeakValueDictionary()
        self._calls: Counter[TenantId] = Counter()

    @asynccontextmanager
    async def admitted(self, tenant_id: TenantId) -> AsyncIterator[asyncio.Semaphore]:
        """Count one call, and return the tenant's semaphore. Raises ``RateLimited`` when too many wait already."""
        most = self._places + MAX_WAITING
        if self._calls[tenant_id] >= most:
            raise RateLimited(
                f"{most} {self._what} of yours are going on or waiting already: ask again when some are answered.",
                retry_after=5,
            )
        with counted(self._calls, tenant_id):
            yield self.semaphore(tenant_id)

    @asynccontextmanager
    async def one(self, tenant_id: TenantId) -> AsyncIterator[None]:
        """Work in one of the tenant's places, once it is free. Raises ``RateLimited`` when too many wait already."""
        async with self.admitted(tenant_id) as semaphore, semaphore:
            yield

    def semaphore(self, tenant_id: TenantId) -> asyncio.Semaphore:
        """Return the tenant's semaphore, for calls that are counted elsewhere."""
        semaphore = self._semaphores.get(tenant_id)
        if semaphore is None:
            semaphore = self._semaphores[tenant_id] = asyncio.Semaphore(self._places)
        return semaphore


async def releasing(content: AsyncIterator[bytes], semaphore: asyncio.Semaphore) -> AsyncGenerator[bytes]:
    """Yield the pieces; the caller's place is free for others while the next piece has not arrived."""
    while True:
        semaphore.release()
        try:
            piece = await anext(content, None)
        finally:
            await semaphore.acquire()
        if piece is None:
            return
        yield piece


#: Followers of one tenant that poll as often as they can. With more of them, all together poll no more often.
AT_FULL_PACE = 10


class PagedReads:
    """Places of the tenants' reads, and the number of followers that each has."""

    def __init__(self) -> None:
        self._pages = TenantQueue(1, "pages of logs")
        self._following: Counter[TenantId] = Counter()

    def place(self, tenant_id: TenantId) -> asyncio.Semaphore:
        """Return the tenant's semaphore, to be acquired while one page is read."""
        return self._pages.semaphore(tenant_id)

    def following(self, tenant_id: TenantId) -> AbstractContextManager[None]:
        """Count one more follower of the tenant while the context is open."""
        return counted(self._following, tenant_id)

    def slowdown(self, tenant_id: TenantId) -> float:
        """Return the factor, 1 or more, by which a follower of this tenant extends its pauses."""
        return max(1.0, self._following[tenant_id] / AT_FULL_PACE)
