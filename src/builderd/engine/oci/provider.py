"""The engine for one machine as a kind of engine: implements ``ports.engine.EngineProvider``."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv4Network
from pathlib import Path

from builderd.engine.inventory import EngineInventory, PreflightCheck
from builderd.engine.oci.engine import inventory, preflight
from builderd.engine.oci.engine.engine import OciEngine
from builderd.engine.oci.network.allocations import sandbox_networks
from builderd.engine.oci.storage.base import ensure_base, find_host_base
from builderd.engine.port import EngineOptions, Progress


class OciProvider:
    def make(self, options: EngineOptions) -> OciEngine:
        return OciEngine(options)

    def run_checks(self, data_dir: Path, floor_bytes: int) -> Sequence[PreflightCheck]:
        return preflight.run_checks(data_dir, floor_bytes)

    def read_inventory(self, data_dir: Path) -> EngineInventory | None:
        return inventory.read_inventory(data_dir)

    def build_base(self, progress: Progress) -> str:
        return ensure_base(progress=progress).id

    def find_base(self) -> Path | None:
        base = find_host_base()
        return base.root if base else None

    def networks(self) -> Sequence[IPv4Network]:
        return sandbox_networks()
