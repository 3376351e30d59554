"""Slots: the uids and addresses that one running sandbox has of its service's.

A slot stays taken until its sandbox is removed, so that no two live sandboxes ever share one, and no route leads to a
sandbox that has the address of an earlier one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Network
from pathlib import Path

from builderd.adapters.engines.oci.network.allocations import IDS, PREFIX, SLOTS_PER_BLOCK, UID_BASE
from builderd.domain.errors import NoCapacity

#: The kernel takes 1,024 ports on one bridge (BR_MAX_PORTS).
MAX_SLOTS = 1020
#: .0 is the network, .1 the gateway.
_FIRST_HOST = 2
#: Sandboxes without network access have the addresses of the subnet's upper half.
_HALF = 1 << (32 - PREFIX - 1)


@dataclass(frozen=True, slots=True)
class Addresses:
    """The addresses of one service's sandboxes."""

    subnet: IPv4Network

    @property
    def gateway(self) -> str:
        return str(self.subnet[1])

    @property
    def without_egress(self) -> IPv4Network:
        """Return the half of the subnet for sandboxes without network access."""
        return list(self.subnet.subnets())[1]

    def of(self, slot: int, egress: bool) -> str:
        return str(self.subnet[_FIRST_HOST + slot + (0 if egress else _HALF)])


class Slots:
    """Slots in use. ``grow`` allocates one more block of uids for the service.

    ``memory`` is a file for the last one that was taken, where it lasts as long as the machine is up: the next service
    continues from there, and gives out no address that was released a moment ago.
    """

    def __init__(
        self, blocks: tuple[int, ...], grow: Callable[[], tuple[int, ...]], memory: Path | None = None
    ) -> None:
        self._blocks = blocks
        self._grow = grow
        #: Sandbox id by slot: the slot in a record of an earlier boot may belong to another sandbox meanwhile.
        self._taken: dict[int, str] = {}
        self._memory = memory
        self._last = _remembered(memory)

    def occupy(self, slot: int, name: str) -> None:
        """Mark the slot of a running sandbox that was found at the start."""
        self._taken[slot] = name

    def take(self, name: str) -> int:
        """Return a free slot for this sandbox, the least recently used first. Raises ``NoCapacity``."""
        slot = self.next()
        if slot is None:
            if len(self._blocks) * SLOTS_PER_BLOCK >= MAX_SLOTS:
                raise NoCapacity(f"This engine runs {MAX_SLOTS} sandboxes at most: stop one first.")
            self._blocks = self._grow()
            return self.take(name)
        if self._memory:
            self._memory.write_text(str(slot))
        self._taken[slot] = name
        self._last = slot
        return slot

    def next(self) -> int | None:
        """Return the slot that is taken next, None when a new block of uids is needed."""
        count = min(len(self._blocks) * SLOTS_PER_BLOCK, MAX_SLOTS)
        candidates = ((self._last + offset) % count for offset in range(1, count + 1))
        return next((slot for slot in candidates if slot not in self._taken), None)

    def give_back(self, slot: int, name: str) -> None:
        """Free the slot. Idempotent; ignored when another sandbox has it."""
        if self._taken.get(slot) == name:
            del self._taken[slot]

    def uid(self, slot: int) -> int:
        """Return the host's uid of the sandbox's root; it has 65,536 ids from there on."""
        block = self._blocks[slot // SLOTS_PER_BLOCK]
        return UID_BASE + (block * SLOTS_PER_BLOCK + slot % SLOTS_PER_BLOCK) * IDS


def _remembered(memory: Path | None) -> int:
    """Read the last slot from its file; -1 when there is none, as after a reboot."""
    try:
        return int(memory.read_text()) if memory else -1
    except (FileNotFoundError, ValueError):
        return -1
