"""Listening sockets of a sandbox."""

from __future__ import annotations

import asyncio
import struct
import time
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address

from builderd.adapters.engines.oci.network import socket_diag
from builderd.adapters.engines.oci.network.socket_diag import NoSocketDiag, Sockets
from builderd.adapters.engines.oci.runtime.execute import execution, read_all
from builderd.adapters.engines.oci.runtime.records import Record
from builderd.adapters.engines.oci.runtime.runs import Runs
from builderd.domain.errors import InvalidState
from builderd.domain.processes import ProcessSpec
from builderd.domain.sandboxes import IPV6_ONLY
from builderd.linux.processes import read_proc

_LISTEN = "0A"
_FILES = ("net/tcp", "net/tcp6")
_DIAL_SECONDS = 0.2
#: Reading sockets inside gVisor runs a command there: at most once in so many seconds.
_CACHE_SECONDS = 1.0
_MAX_BYTES = 1 << 20
_COMMAND = ProcessSpec(("cat", "/proc/net/tcp", "/proc/net/tcp6"), joined=True)


class ListeningPorts:
    """Listening ports of running sandboxes."""

    def __init__(self, runs: Runs) -> None:
        self._runs = runs
        #: Sockets last read inside gVisor, with their time; dropped when too old.
        self._results: dict[str, tuple[float, Sockets]] = {}

    async def of(self, record: Record) -> Sockets:
        """Return the listening sockets of a running sandbox, at most some dozens."""
        if self._runs.commands.runtime(record).is_gvisor:
            return await self._of_gvisor(record)
        assert record.process
        return listening_sockets_of(record.process.pid, record.port)

    async def _of_gvisor(self, record: Record) -> Sockets:
        """Read the sockets of a gVisor sandbox, hidden from the host: connect to the port, else run a command."""
        if await _answers(record.ip, record.port):
            return frozenset({("0.0.0.0", record.port)})  # noqa: S104
        looked_at, sockets = self._results.get(record.id, (0.0, frozenset()))
        if time.monotonic() - looked_at > _CACHE_SECONDS:
            sockets = await self._look(record)
            if ("::", record.port) in sockets and not await _answers(record.ip, record.port):
                sockets = sockets - {("::", record.port)} | {(IPV6_ONLY, record.port)}
            now = time.monotonic()
            self._results = {name: one for name, one in self._results.items() if now - one[0] <= _CACHE_SECONDS}
            self._results[record.id] = (now, sockets)
        return sockets

    async def _look(self, record: Record) -> Sockets:
        try:
            async with asyncio.timeout(_CACHE_SECONDS * 5), execution(self._runs, record, _COMMAND) as command:
                return parse_listening((await read_all(command, _MAX_BYTES)).decode(errors="replace"))
        except (InvalidState, TimeoutError):
            return frozenset()


async def _answers(ip: str, port: int) -> bool:
    try:
        _, writer = await asyncio.wait_for(asyncio.open_connection(ip, port), _DIAL_SECONDS)
    except (OSError, TimeoutError):
        return False
    writer.close()
    return True


def listening_sockets_of(process: int, port: int) -> Sockets:
    """Return the listening sockets in the network namespace of this process, those of ``port`` first."""
    try:
        return socket_diag.listening(process, port)
    except NoSocketDiag:
        return parse_listening("".join(read_proc(f"{process}/{file}") for file in _FILES))


def parse_listening(text: str) -> Sockets:
    """Parse ``net/tcp`` and ``net/tcp6`` (proc_pid_net(5)) into (IP, port) of each socket in the LISTEN state.

    An IPv4-mapped address is written ``::ffff:a.b.c.d``.
    """
    return frozenset(_sockets(text))


def _sockets(text: str) -> Iterator[tuple[str, int]]:
    for line in text.splitlines():
        fields = line.split()
        if len(fields) > 3 and fields[3] == _LISTEN:
            address, _, port = fields[1].partition(":")
            yield _ip(bytes.fromhex(address)), int(port, 16)


def _ip(words: bytes) -> str:
    """Convert an address that the kernel prints as 32-bit words in the machine's byte order."""
    packed = b"".join(struct.pack(">I", word) for (word,) in struct.iter_unpack("=I", words))
    if len(packed) == 4:
        return str(IPv4Address(packed))
    address = IPv6Address(packed)
    return f"::ffff:{address.ipv4_mapped}" if address.ipv4_mapped else str(address)
