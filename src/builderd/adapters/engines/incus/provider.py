"""The engine on Incus as a kind of engine; implements ``ports.engine.EngineProvider``."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

from builderd.adapters.engines.incus import preflight
from builderd.adapters.engines.incus.engine import IncusEngine
from builderd.adapters.engines.incus.image import ensure_image
from builderd.adapters.engines.incus.options import IncusOptions
from builderd.adapters.engines.incus.witness import Witness
from builderd.adapters.engines.oci.storage.base import find_host_base
from builderd.domain.inventory import EngineInventory
from builderd.domain.preflight import PreflightCheck
from builderd.ports.engine import Engine, EngineOptions, Progress


class IncusProvider:
    def __init__(self, options: IncusOptions | None = None) -> None:
        self._incus = options or IncusOptions()

    def configured(self, section: dict[str, Any]) -> IncusProvider:
        """Return the provider with the fields of the settings' section ``incus``."""
        return IncusProvider(IncusOptions(**section))

    def make(self, options: EngineOptions) -> Engine:
        return IncusEngine(options, self._incus)

    def run_checks(self, data_dir: Path, floor_bytes: int) -> Sequence[PreflightCheck]:
        return preflight.run_checks(self._incus)

    def read_inventory(self, data_dir: Path) -> EngineInventory | None:
        return None

    def build_base(self, progress: Progress) -> str:
        return ensure_image(progress).base_id

    def find_base(self) -> Path | None:
        base = find_host_base()
        return base.root if base else None

    def networks(self) -> Sequence[IPv4Network]:
        return [self._incus.subnet]

    async def disks_id(self) -> str:
        return await Witness(self._incus).disks_id()

    async def claimant(self) -> str:
        return await Witness(self._incus).claimant()

    async def claim(self, service: str) -> None:
        await Witness(self._incus).claim(service)
