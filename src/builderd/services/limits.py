"""Limits set by the operator, for all and for each tenant, retention times, and the time limit of one start."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from decimal import Decimal

from builderd.domain.prices import Cap, lowest
from builderd.domain.resources import Limit, Resources
from builderd.domain.tokens import Tenant
from builderd.domain.versions import Isolation, VersionSettings
from builderd.ports.clock import Clock
from builderd.ports.engine import Engine

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
