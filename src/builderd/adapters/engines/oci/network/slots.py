"""Slots: what one running sandbox has for itself of the service's uids and addresses.

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
#: Sandboxes without a way out have the addresses of the subnet's upper half.
_HALF = 1 << (32 - PREFIX - 1)


@dataclass(frozen=True, slots=True)
class Addresses:
    """The addresses of one service's sandboxes."""

    subnet: IPv4Network

    @property
    def gateway(self) -> str:
        return str(self.subnet[1])

    @property
    def secluded(self) -> IPv4Network:
        """Where sandboxes without a way out are."""
        return list(self.subnet.subnets())[1]

    def of(self, slot: int, egress: bool) -> str:
        return str(self.subnet[_FIRST_HOST + slot + (0 if egress else _HALF)])


class Slots:
    """Which numbers are taken. ``grow`` gets one more block of uids for the service.

    ``memory`` is a file for the last one that was taken, where it lasts as long as the machine is up: the next service
    goes on from there, and gives out no address that was given back a moment ago.
    """

    def __init__(
        self, blocks: tuple[int, ...], grow: Callable[[], tuple[int, ...]], memory: Path | None = None
    ) -> None:
        self._blocks = blocks
        self._grow = grow
        #: By whom: what an earlier boot of the machine left has a number that is another's by now.
        self._taken: dict[int, str] = {}
        self._memory = memory
        self._last = _remembered(memory)

    def occupy(self, slot: int, name: str) -> None:
        """Mark what a running sandbox was found with."""
        self._taken[slot] = name

    def take(self, name: str) -> int:
        """A free slot for this sandbox, the longest unused first. Raises ``NoCapacity``."""
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
        """The slot that will be taken next, None when all that there are so far are taken."""
        count = min(len(self._blocks) * SLOTS_PER_BLOCK, MAX_SLOTS)
        candidates = ((self._last + offset) % count for offset in range(1, count + 1))
        return next((slot for slot in candidates if slot not in self._taken), None)

    def give_back(self, slot: int, name: str) -> None:
        """Idempotent, and without effect when it is not this sandbox that has the slot."""
        if self._taken.get(slot) == name:
            del self._taken[slot]

    def uid(self, slot: int) -> int:
        """The host's id of the sandbox's 0; 65,536 ids from here on are its own."""
        block = self._blocks[slot // SLOTS_PER_BLOCK]
        return UID_BASE + (block * SLOTS_PER_BLOCK + slot % SLOTS_PER_BLOCK) * IDS


def _remembered(memory: Path | None) -> int:
    """-1 where there is nothing to be found, such as after a restart of the machine."""
    try:
        return int(memory.read_text()) if memory else -1
    except (FileNotFoundError, ValueError):
        return -1
