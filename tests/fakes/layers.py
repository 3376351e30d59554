"""Layers in memory, and the record of a fake engine's calls."""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from collections.abc import Callable, Collection
from datetime import datetime

from builderd.core.ids import TenantId
from builderd.core.resources import GB, Capacity
from builderd.dependencies.model import BuildOutcome, LayerPlan, StoredLayer, StoredLayers
from builderd.engine.port import Progress

#: Bytes of a layer that a test gave no others.
LAYER_BYTES = 1_000_000


class FakeCalls:
    """Record of the calls made, as (method, subject), some of which are scripted to fail."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str]] = []
        self._failures: defaultdict[str, deque[Exception]] = defaultdict(deque)

    def fail_next(self, method: str, *errors: Exception) -> None:
        """Make the next calls of a method raise these in turn."""
        self._failures[method].extend(errors)

    def _called(self, method: str, subject: str) -> None:
        self.calls.append((method, subject))
        if self._failures[method]:
            raise self._failures[method].popleft()


class FakeLayers(FakeCalls):
    """Implements ``ports.engine.Layers`` except for collecting, which needs to know the sandboxes."""

    def __init__(self, now: Callable[[], datetime]) -> None:
        super().__init__()
        self.known_layers: dict[str, int] = {}
        self._layer_used: dict[str, datetime] = {}
        #: Bytes of each layer where it is not one of ``LAYER_BYTES``, and the tenant that built it.
        self.layer_bytes: dict[str, int] = {}
        self.layer_tenants: dict[str, TenantId | None] = {}
        #: Outcomes of the next builds, first come first used; a build without one succeeds.
        self.build_outcomes: deque[BuildOutcome] = deque()
        #: Capacity that ``capacity`` returns.
        self.has = Capacity(cpu=64, memory=256, disk=10_000)
        #: Files that the build of a version makes, by its command; by default one that names the command.
        self.build_results: dict[str, dict[str, bytes]] = {}
        self.built: dict[str, dict[str, bytes]] = {}
        self._builds: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._now = now

    async def has_layer(self, key: str) -> bool:
        self._called("has_layer", key)
        if key in self.known_layers:
            self._layer_used[key] = self._now()
        return key in self.known_layers

    async def build_layer(self, plan: LayerPlan, progress: Progress) -> BuildOutcome:
        self._called("build_layer", plan.key)
        async with self._builds[plan.key]:
            if plan.key in self.known_layers:
                return BuildOutcome(exit_code=0, output=(), seconds=0, reused=True)
            for step in plan.steps:
                progress(step.title)
            await asyncio.sleep(0)
            outcome = self._next_outcome()
            if outcome.ok:
                self.known_layers[plan.key] = 1
                self.layer_tenants[plan.key] = plan.tenant
                self._layer_used[plan.key] = self._now()
                if plan.app is not None:
                    command = plan.steps[0].argv[-1]
                    self.built[plan.key] = self.build_results.get(command, {"built.txt": command.encode()})
            return outcome

    async def stored_layers(self, keys: Collection[str] | None = None) -> StoredLayers:
        self._called("stored_layers", "")
        found = {
            key: StoredLayer(self.layer_bytes.get(key, LAYER_BYTES), self.layer_tenants.get(key))
            for key in self.known_layers
            if keys is None or key in keys
        }
        return StoredLayers(found, int(self.has.disk * GB))

    def _next_outcome(self) -> BuildOutcome:
        return self.build_outcomes.popleft() if self.build_outcomes else BuildOutcome(0, (), 0.0)
