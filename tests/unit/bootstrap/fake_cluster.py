"""A cluster and an instance of the service, for tests of services that stand by."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from builderd.core.errors import EngineUnavailable
from builderd.core.members import Instance
from builderd.settings import Settings


@dataclass
class FakeCluster:
    """A cluster as ``ports.engine.ClusterProvider``."""

    id: str = "cluster"
    claimed: str = ""
    away: bool = False
    #: Claims that fail first, and when each was tried.
    failing: int = 0
    tried: list[float] = field(default_factory=list)
    claimed_at: float = 0.0
    claims: list[str] = field(default_factory=list)

    async def disks_id(self) -> str:
        self._answer()
        return self.id

    async def claimant(self) -> str:
        self._answer()
        return self.claimed

    async def claim(self, service: str) -> None:
        self._answer()
        if self.failing:
            self.failing -= 1
            self.tried.append(time.monotonic())
            raise EngineUnavailable("The cluster did not answer within 3 s.")
        self.claimed, self.claimed_at = service, time.monotonic()
        self.claims.append(service)

    def _answer(self) -> None:
        if self.away:
            raise EngineUnavailable("The cluster does not answer.")


def instance(settings: Settings) -> Instance:
    return Instance("host", "host", str(settings.data_dir), settings.data_dir.name, "boot")
