"""Assign each tenant a share of the host's NAT ports. Kept in memory: a starting service assigns them again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from builderd.adapters.engines.oci.network.nft import SHARES


class PortShares:
    """Tenants with a sandbox have a share each; beyond ``SHARES`` of them, the fewest have one together."""

    def __init__(self) -> None:
        self._tenants: dict[str, str] = {}
        self._shares: dict[str, int] = {}

    def assign(self, tenants: Mapping[str, str]) -> dict[str, int]:
        """Return the share of each address, by the tenant of each."""
        result = {}
        for ip, tenant in tenants.items():
            if tenant not in self._shares:
                taken = Counter(self._shares.values())
                self._shares[tenant] = min(range(SHARES), key=lambda share: taken[share])
            self._tenants[ip] = tenant
            result[ip] = self._shares[tenant]
        return result

    def release(self, ip: str) -> bool:
        """Forget an address, and its tenant with the last one; return whether it had a share."""
        tenant = self._tenants.pop(ip, None)
        if tenant is not None and tenant not in self._tenants.values():
            del self._shares[tenant]
        return tenant is not None
