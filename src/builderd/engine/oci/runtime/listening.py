"""Listening sockets of a sandbox."""

from __future__ import annotations

import asyncio
import socket
import struct
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

from builderd.core.errors import InvalidState
from builderd.engine.oci.runtime.execute import execution
from builderd.engine.oci.runtime.records import Record
from builderd.engine.oci.runtime.runs import Runs
from builderd.executions.model import ProcessSpec
from builderd.sandboxes.model import IPV6_ONLY

Sockets = frozenset[tuple[str, int]]

_LISTEN_HEX = "0A"
_DIAL_SECONDS = 0.2
#: Reading all sockets takes some 10 ms, and a command inside gVisor: not before the app is so many seconds old, and at
#: most once in as many.
_CACHE_SECONDS = 1.0
#: Bytes of each list that are read: a hostile app may have many thousands of sockets.
_MAX_BYTES = 1 << 20
_COMMAND = ProcessSpec(("cat", "/proc/net/tcp", "/proc/net/tcp6"), joined=True)


class ListeningPorts:
    """Listening ports of running sandboxes."""

    def __init__(self, runs: Runs) -> None:
        self._runs = runs
        #: Sockets last read, with their time; dropped when too old.
        self._results: dict[str, tuple[float, Sockets]] = {}

    async def of(self, record: Record, port: int) -> Sockets:
        """Return the listening sockets of a running sandbox: this port alone once that accepts connections."""
        if await _answers(record.ip, port):
            return frozenset({("0.0.0.0", port)})  # noqa: S104
        read_at, sockets = self._results.get(record.id, (record.started_at or 0.0, frozenset()))
        if self._runs.records.now() - read_at > _CACHE_SECONDS:
            sockets = await self._read(record)
            now = self._runs.records.now()
            self._results = {name: one for name, one in self._results.items() if now - one[0] <= _CACHE_SECONDS}
            self._results[record.id] = (now, sockets)
        if ("::", port) in sockets and not await _answers(record.ip, port):
            return sockets - {("::", port)} | {(IPV6_ONLY, port)}
        return sockets

    async def _read(self, record: Record) -> Sockets:
        if not self._runs.commands.runtime(record).is_gvisor:
            assert record.process
            return parse_listening(await asyncio.to_thread(_read_files, record.process.pid))
        try:
            async with asyncio.timeout(_CACHE_SECONDS * 5), execution(self._runs, record, _COMMAND) as command:
                output = b""
                while len(output) < _MAX_BYTES and (piece := await command.read()):
                    output += piece
                return parse_listening(output.decode(errors="replace"))
        except (InvalidState, TimeoutError):
            return frozenset()


def _read_files(process: int) -> str:
    """Return the sockets in the network namespace of a process; empty when it is gone."""
    text = ""
    for name in ("tcp", "tcp6"):
        with suppress(OSError), Path(f"/proc/{process}/net/{name}").open() as file:
            text += file.read(_MAX_BYTES)
    return text


async def _answers(ip: str, port: int) -> bool:
    with socket.socket() as dialled:
        dialled.setblocking(False)
        try:
            await asyncio.wait_for(asyncio.get_running_loop().sock_connect(dialled, (ip, port)), _DIAL_SECONDS)
        except (OSError, TimeoutError):
            return False
    return True


def parse_listening(text: str) -> Sockets:
    """Parse ``net/tcp`` and ``net/tcp6`` (proc_pid_net(5)) into (IP, port) of each socket in the LISTEN state.

    An IPv4-mapped address is written ``::ffff:a.b.c.d``.
    """
    rows = (line.split() for line in text.splitlines())
    addresses = (fields[1].partition(":") for fields in rows if len(fields) > 3 and fields[3] == _LISTEN_HEX)
    return frozenset((_ip(bytes.fromhex(address)), int(port, 16)) for address, _, port in addresses)


def _ip(words: bytes) -> str:
    """Convert an address that the kernel prints as 32-bit words in the machine's byte order."""
    packed = b"".join(struct.pack(">I", word) for (word,) in struct.iter_unpack("=I", words))
    if len(packed) == 4:
        return str(IPv4Address(packed))
    address = IPv6Address(packed)
    return f"::ffff:{address.ipv4_mapped}" if address.ipv4_mapped else str(address)
