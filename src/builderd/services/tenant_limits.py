"""Limits set by the operator: quota and caps of each tenant, and the capacity for all together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal

from builderd.domain.prices import Cap, lowest
from builderd.domain.resources import Limit
from builderd.domain.tokens import Tenant


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
