"""Bytecode compilation: layers are compiled in the background, one at a time, once their app is up.

Tenants take turns: one that deploys many apps does not keep the layers of others from being compiled.
"""

from __future__ import annotations

import logging

from builderd.domain.versions import NO_LAYER
from builderd.reconciler.core.loops import FairQueue
from builderd.reconciler.core.observe import WorkItem
from builderd.reconciler.stages.install import compile_layer
from builderd.services.application import Application

#: Layers of one tenant that wait; one more is compiled when its app runs again after that.
MOST_OF_TENANT = 20

log = logging.getLogger(__name__)


class BytecodeCompilation:
    """Bytecode compilation of layers, once each in a process's life; the engine knows those already compiled."""

    def __init__(self, application: Application) -> None:
        self._app = application
        self._known: set[str] = set()
        self._waiting: FairQueue[WorkItem] = FairQueue(MOST_OF_TENANT)

    def add(self, item: WorkItem) -> None:
        """Queue the layer of this builder's version for compilation."""
        key = item.version.layer_key
        if key is None or key == NO_LAYER or key in self._known:
            return
        if self._waiting.put(item.builder.tenant_id, item):
            self._known.add(key)

    async def run(self) -> None:
        """Compile queued layers until cancelled. A layer that fails to compile stays as it is."""
        while True:
            item = await self._waiting.get()
            try:
                await compile_layer(self._app, item)
            except Exception:
                log.warning("bytecode compilation failed layer=%s", item.version.layer_key, exc_info=True)
