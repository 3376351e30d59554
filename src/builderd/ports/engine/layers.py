"""Layers: installed dependencies, shared by the sandboxes whose requirements have the same key."""

from __future__ import annotations

from typing import Protocol

from builderd.domain.layers import BuildOutcome, BuildStep, LayerPlan
from builderd.ports.engine.progress import Progress


class Layers(Protocol):
    @property
    def base_id(self) -> str:
        """Name of the base root file system; part of every layer's key."""

    async def has_layer(self, key: str) -> bool:
        """Return True when a complete layer of this key exists."""

    async def build_layer(self, plan: LayerPlan, progress: Progress) -> BuildOutcome:
        """Run the plan's steps in build sandboxes; all or nothing. Two calls for one key make one layer."""

    async def compile_layer(self, key: str, step: BuildStep) -> BuildOutcome:
        """Run the step on a clone of the layer, which replaces it for sandboxes started later."""
