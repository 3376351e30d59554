"""The engine as one value: its six parts, and what concerns all of them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

from builderd.domain.resources import Capacity
from builderd.ports.engine.disks import Disks
from builderd.ports.engine.layers import Layers
from builderd.ports.engine.logs import Logs
from builderd.ports.engine.members import Members
from builderd.ports.engine.progress import Progress
from builderd.ports.engine.sandboxes import Sandboxes
from builderd.ports.engine.tools import Tools


@dataclass(frozen=True, slots=True)
class Readiness:
    """Readiness of the engine. ``ready``: sandboxes can start; ``message``: what is being made or what is wrong.

    ``full``: it is not ready only for want of space. ``engine_unreachable``: only because what starts sandboxes does
    not answer, while those that run go on, and write.
    """

    ready: bool
    message: str
    full: bool = False
    engine_unreachable: bool = False


@dataclass(frozen=True, slots=True)
class Collected:
    """Result of a collection: keys of removed layers, names of removed bases, number of removed scratch folders."""

    layers: Sequence[str]
    bases: Sequence[str]
    scratch: int


class Engine(Sandboxes, Disks, Layers, Logs, Tools, Members, Protocol):
    async def prepare(self, progress: Progress) -> None:
        """Create what the engine needs (base, store, network). Idempotent; may take a minute."""

    def readiness(self) -> Readiness:
        """Return the progress or result of ``prepare``."""

    def capacity(self) -> Capacity:
        """Return the capacity for builders as known now, without waiting."""

    async def collect(self, keep: Collection[str], unused_seconds: float) -> Collected:
        """Remove layers that are not in ``keep``, bases, and files of ended sandboxes.

        Only what no sandbox has mounted and no call (``has_layer``, ``start``) used for ``unused_seconds``. A
        concurrent call either gets a layer, which then stays, or finds that there is none.
        """

    def is_tight(self) -> bool:
        """Return True when space runs out and should be collected early."""

    async def close(self) -> None:
        """Release everything; sandboxes continue running, and the next service adopts them."""

    async def down(self) -> None:
        """Stop every sandbox and remove everything from the host: network, mounts, control groups."""
