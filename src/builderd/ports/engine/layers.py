"""Layers: installed dependencies, shared by the sandboxes whose requirements have the same key."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Protocol

from builderd.domain.layers import BuildOutcome, BuildStep, LayerPlan, StoredLayers
from builderd.ports.engine.progress import Progress


class Layers(Protocol):
    @property
    def base_id(self) -> str:
        """Name of the base root file system; part of every layer's key."""

    async def has_layer(self, key: str) -> bool:
        """Return True when a complete layer of this key exists."""

    async def build_layer(self, plan: LayerPlan, progress: Progress) -> BuildOutcome:
        """Run the plan's steps in build sandboxes; all or nothing. Two calls for one key make one layer.

        A plan with an ``app`` runs them on the version's files; the layer is what they made of these.
        Raises ``InstallFailed`` when the layer needs more than the plan's ``limit_bytes``.
        """

    async def stored_layers(self, keys: Collection[str] | None = None) -> StoredLayers:
        """Return all complete layers with their sizes and the tenants that built them, or those of these keys."""

    async def collect_layers(self, keys: Collection[str], unused_seconds: float) -> Sequence[str]:
        """Remove these layers as ``collect`` does: only those that no sandbox has mounted and no call just used."""

    async def compile_layer(self, key: str, step: BuildStep) -> BuildOutcome:
        """Run the step on a clone of the layer, which replaces it for sandboxes started later."""
