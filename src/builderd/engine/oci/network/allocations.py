"""Allocations of the host: each service gets a subnet and blocks of uids of its own.

Kept for the whole host in one file under a lock. A service that is gone, with its data directory and its bridge,
releases what it had. There is no port allocation: each sandbox has an address of its own in the subnet.
"""

from __future__ import annotations

import fcntl
import os
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

from builderd.core.errors import EngineUnavailable, NoCapacity
from builderd.linux.atomic_files import from_stored, read_json, to_stored, write_json

HOST_DIR = Path("/var/lib/builderd-host")

#: Uids of sandboxes: above what systemd and shadow-utils hand out by default, below 2^31, which not all programs take.
UID_BASE = 0x6000_0000
IDS = 65536
SLOTS_PER_BLOCK = 256
BLOCKS = 31

#: 2,048 addresses, of which sandboxes with a way out take the lower half and those without one the upper half.
PREFIX = 21
#: Private networks searched in this order for a subnet without a route on the host.
_PRIVATE_NETWORKS = tuple(IPv4Network(n) for n in ("10.64.0.0/10", "172.16.0.0/12", "192.168.0.0/16", "198.18.0.0/15"))


@dataclass(frozen=True, slots=True)
class Allocation:
    """Allocation of one service. ``id``: 8 hex characters. ``blocks`` number ranges of 256 · 65,536 uids each."""

    id: str
    data_dir: str
    subnet: str
    blocks: tuple[int, ...] = ()
    unknown: Mapping[str, Any] = field(default_factory=dict, compare=False)

    @property
    def network(self) -> IPv4Network:
        return IPv4Network(self.subnet)


def bridge_name(instance: str) -> str:
    """Name of the bridge, at most 15 characters as all link names."""
    return f"bd-{instance[:6]}"


class Allocations:
    """File of all allocations of the host."""

    def __init__(self, host_dir: Path = HOST_DIR) -> None:
        self._dir = host_dir
        self._file = host_dir / "allocations.json"

    def claim(self, data_dir: Path, routes: Iterable[IPv4Network]) -> Allocation:
        """Return the allocation of this data directory, made on its first use. ``routes`` are those of the host.

        Raises ``EngineUnavailable`` for a copy of a data directory that is still there.
        """
        data_dir = data_dir.absolute()
        with self._locked() as known:
            mine = known_instance(data_dir) or Allocation(secrets.token_hex(4), str(data_dir), "")
            _refuse_copy(data_dir, mine, known)
            others = [one for one in known if one.id != mine.id]
            mine = next((one for one in known if one.id == mine.id), mine)
            # The host's routes but the default one and our own.
            foreign = [route for route in routes if route.prefixlen and str(route) != mine.subnet]
            taken = [*(one.network for one in others), *foreign]
            if not mine.subnet or any(mine.network.overlaps(network) for network in taken):
                mine = replace(mine, subnet=str(free_subnet(mine.id, taken)))
            if not mine.blocks:
                mine = replace(mine, blocks=(_free_block(known),))
            mine = replace(mine, data_dir=str(data_dir))
            self._write([*others, mine])
        content = {**_stored_instance(data_dir), "id": mine.id, "subnet": mine.subnet}
        write_json(data_dir / "instance.json", content, durable=True)
        return mine

    def grow(self, mine: Allocation) -> Allocation:
        """Add a block of uids. Raises ``NoCapacity`` when the host has none left."""
        with self._locked() as known:
            grown = replace(mine, blocks=(*mine.blocks, _free_block(known)))
            self._write([*(one for one in known if one.id != mine.id), grown])
        return grown

    def release(self, instance: str) -> None:
        """Release the allocation. Idempotent; the data directory keeps the subnet for its next use."""
        with self._locked() as known:
            self._write([one for one in known if one.id != instance])

    def known(self) -> list[Allocation]:
        """Return all allocations. The file is replaced atomically, so reading needs no lock."""
        return [one for one in self._read() if one.subnet]

    @contextmanager
    def _locked(self) -> Iterator[list[Allocation]]:
        self._dir.mkdir(mode=0o755, parents=True, exist_ok=True)
        lock = os.open(self._dir / "allocations.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield [one for one in self._read() if _is_live(one)]
        finally:
            os.close(lock)

    def _read(self) -> list[Allocation]:
        entries = read_json(
            self._file, "Remove it and restart the machine: each service gets a share of the host anew."
        )
        return [from_stored(Allocation, {**entry, "blocks": tuple(entry["blocks"])}) for entry in entries or ()]

    def _write(self, allocations: Sequence[Allocation]) -> None:
        write_json(self._file, [to_stored(one) for one in allocations], durable=True)


def sandbox_networks(host_dir: Path = HOST_DIR) -> list[IPv4Network]:
    """Return the subnets of all services of this host."""
    return [one.network for one in Allocations(host_dir).known()]


def known_instance(data_dir: Path) -> Allocation | None:
    """Return the allocation stored in this data directory, None before its first use.

    Raises ``EngineUnavailable`` where that is damaged.
    """
    memory = _stored_instance(data_dir)
    return Allocation(memory["id"], str(data_dir), memory["subnet"]) if memory else None


def _stored_instance(data_dir: Path) -> Mapping[str, Any]:
    return (
        read_json(
            data_dir / "instance.json",
            f'Write {{"id": "…", "subnet": "…"}} into it, with what {HOST_DIR}/allocations.json has for {data_dir}.',
        )
        or {}
    )


def _is_live(one: Allocation) -> bool:
    """Return True while its data directory refers to it or its network exists."""
    return _remembers(one) or Path("/sys/class/net", bridge_name(one.id)).exists()


def _remembers(one: Allocation) -> bool:
    """Return True when its data directory refers to it, or cannot be read and may be in use."""
    try:
        memory = known_instance(Path(one.data_dir))
    except (EngineUnavailable, OSError):
        return True
    return memory is not None and memory.id == one.id


def _refuse_copy(data_dir: Path, mine: Allocation, known: Iterable[Allocation]) -> None:
    """Refuse a copied data directory: it would use the original's store and network. A moved one has no original."""
    for one in known:
        if one.id == mine.id and not _is_same(data_dir, Path(one.data_dir)) and _remembers(one):
            raise EngineUnavailable(
                f"{data_dir} is a copy of {one.data_dir}, or the other way round: both are the service {one.id}, with "
                "the same sandboxes and store. Move a data directory instead of copying it. If the other one is not "
                "to run any more, stop its service and rename or delete it. For a second service use 'builderd "
                "backup' and 'builderd restore'."
            )


def _is_same(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:  # the original is gone, or its disk is
        return False


def free_subnet(instance: str, taken: Sequence[IPv4Network]) -> IPv4Network:
    """Return a free subnet. The search starts at a place derived from the instance, so that services differ."""
    for private in _PRIVATE_NETWORKS:
        count = 1 << (PREFIX - private.prefixlen)
        first = int(instance, 16) % count
        for offset in range(count):
            base = int(private.network_address) + ((first + offset) % count << (32 - PREFIX))
            subnet = IPv4Network((base, PREFIX))
            if not any(subnet.overlaps(network) for network in taken):
                return subnet
    raise NoCapacity("Every private network is routed somewhere on this host: no subnet is left for sandboxes.")


def _free_block(known: Iterable[Allocation]) -> int:
    used = {block for one in known for block in one.blocks}
    for block in range(BLOCKS):
        if block not in used:
            return block
    raise NoCapacity("All uids for sandboxes on this host are taken by other services: run 'builderd down' on one.")


def parse_routes(text: str) -> list[IPv4Network]:
    """Return the IPv4 destinations in the text of ``/proc/net/route``."""
    routes = []
    for line in text.splitlines()[1:]:
        fields = line.split()
        address, mask = (int.from_bytes(bytes.fromhex(fields[i]), "little") for i in (1, 7))
        routes.append(IPv4Network((address, mask.bit_count())))
    return routes


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
    """Slots in use. ``grow`` allocates one more block of uids for the service."""

    def __init__(self, blocks: tuple[int, ...], grow: Callable[[], tuple[int, ...]]) -> None:
        self._blocks = blocks
        self._grow = grow
        #: Sandbox id by slot: the slot in a record of an earlier boot may belong to another sandbox meanwhile.
        self._taken: dict[int, str] = {}
        self._last = -1

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
