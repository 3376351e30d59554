"""Tenants: owners of builders and tokens, isolated from each other."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal

from builderd.domain.ids import TenantId

NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")


@dataclass(frozen=True, slots=True)
class Tenant:
    """Tenant. ``name`` is unique on the service and matches ``NAME``.

    ``spending_cap`` is what the tenant set itself, per calendar month; ``cap_warned_at`` the time of the last
    warning that most of it is spent.
    """

    id: TenantId
    name: str
    created_at: datetime
    spending_cap: Decimal | None = None
    cap_warned_at: datetime | None = None
