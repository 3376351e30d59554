"""The tenants of tokens that were valid lately, for a place in their tenant's queue before the token is looked up."""

from __future__ import annotations

from collections import OrderedDict

from builderd.domain.ids import TenantId

#: Tokens whose tenant is remembered.
MAX_KNOWN = 10_000


class KnownTenants:
    """Tenant by the hash of a token's secret. It decides no more than a queue: each call looks the token up anew."""

    def __init__(self) -> None:
        self._tenants: OrderedDict[str, TenantId] = OrderedDict()

    def get(self, digest: str) -> TenantId | None:
        return self._tenants.get(digest)

    def remember(self, digest: str, tenant_id: TenantId) -> None:
        self._tenants[digest] = tenant_id
        if len(self._tenants) > MAX_KNOWN:
            self._tenants.popitem(last=False)

    def forget(self, digest: str) -> None:
        self._tenants.pop(digest, None)
