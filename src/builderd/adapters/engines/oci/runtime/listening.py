"""Listening sockets of a sandbox."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import struct
import time
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address

from builderd.adapters.engines.oci.runtime.execute import execution, read_all
from builderd.adapters.engines.oci.runtime.records import Record
from builderd.adapters.engines.oci.runtime.runs import Runs
from builderd.domain.errors import InvalidState
from builderd.domain.processes import ProcessSpec
from builderd.domain.sandboxes import IPV6_ONLY
from builderd.linux.processes import read_proc
from builderd.linux.syscalls import CLONE_NEWNET, setns

_LISTEN_HEX = "0A"
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
        return listening(process, port)
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
        if len(fields) > 3 and fields[3] == _LISTEN_HEX:
            address, _, port = fields[1].partition(":")
            yield _ip(bytes.fromhex(address)), int(port, 16)


def _ip(words: bytes) -> str:
    """Convert an address that the kernel prints as 32-bit words in the machine's byte order."""
    packed = b"".join(struct.pack(">I", word) for (word,) in struct.iter_unpack("=I", words))
    if len(packed) == 4:
        return str(IPv4Address(packed))
    address = IPv6Address(packed)
    return f"::ffff:{address.ipv4_mapped}" if address.ipv4_mapped else str(address)


Sockets = frozenset[tuple[str, int]]

_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
_REQUEST_DUMP = 0x1 | 0x300
_FAMILIES = (socket.AF_INET, socket.AF_INET6)
_ERROR, _DONE = 2, 3
_LISTEN = 10
_HEADER = struct.Struct("=IHHII")
#: inet_diag_req_v2 up to the socket's own port; its other port, addresses, interface and cookie are left open.
_REQUEST = struct.Struct("=BBxxI2s46x")
_READ_BYTES = 1 << 16
#: Bytes of inet_diag_msg, which attributes follow, and the head of an attribute: its length and type.
_MESSAGE_BYTES, _ATTRIBUTE = 72, struct.Struct("=HH")
_SKV6ONLY = 11
#: Error codes of a kernel without the module tcp_diag.
_LACKING = (errno.ENOENT, errno.EPROTONOSUPPORT, errno.EOPNOTSUPP)


class NoSocketDiag(Exception):
    """The kernel lacks tcp_diag."""


def listening(process: int, port: int) -> Sockets:
    """Return (IP, port) of listening sockets: some dozens of this port, and some dozens of any port, by sock_diag(7).

    ``/proc/<pid>/net/tcp`` tells the same, but takes milliseconds: for it the kernel walks through the table of all
    connections. Formats: include/uapi/linux/inet_diag.h and sock_diag.h.

    Not all, since a hostile app may have many thousands of them. An IPv4 address within IPv6 stands as
    ``::ffff:a.b.c.d``, [::] for IPv6 alone as ``IPV6_ONLY``. Empty when the process is gone. Errors: NoSocketDiag.
    """
    try:
        with _network_of(process):
            return frozenset(one for family in _FAMILIES for asked in (port, 0) for one in _ask(family, asked))
    except ProcessLookupError:
        return frozenset()


@contextlib.contextmanager
def _network_of(process: int) -> Iterator[None]:
    """Enter the process's network namespace with this thread. Raises ``ProcessLookupError``."""
    own = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        try:
            theirs = os.open(f"/proc/{process}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError as gone:
            raise ProcessLookupError(process) from gone
        try:
            setns(theirs, CLONE_NEWNET)
        finally:
            os.close(theirs)
        try:
            yield
        finally:
            setns(own, CLONE_NEWNET)
    finally:
        os.close(own)


def _ask(family: int, port: int) -> Iterator[tuple[str, int]]:
    """Return the sockets in the kernel's first message; port 0 means any port."""
    request = _REQUEST.pack(family, socket.IPPROTO_TCP, 1 << _LISTEN, port.to_bytes(2, "big"))
    header = _HEADER.pack(_HEADER.size + len(request), _SOCK_DIAG_BY_FAMILY, _REQUEST_DUMP, 0, 0)
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_SOCK_DIAG) as kernel:
            kernel.send(header + request)
            answer = kernel.recv(_READ_BYTES)
    except OSError as error:
        raise _fault(error.errno or 0) from error
    at = 0
    while at < len(answer):
        length, kind, *_ = _HEADER.unpack_from(answer, at)
        body = answer[at + _HEADER.size : at + length]
        if kind == _DONE:
            return
        if kind == _ERROR:
            raise _fault(-struct.unpack_from("=i", body)[0])
        yield _listener(body)
        at += length + 3 & ~3


def _fault(number: int) -> Exception:
    text = os.strerror(number)
    return NoSocketDiag(text) if number in _LACKING else OSError(number, text, "sock_diag")


def _is_ipv6_only(message: bytes) -> bool:
    """Return the attribute INET_DIAG_SKV6ONLY, which the kernel adds to listening sockets of IPv6."""
    at = _MESSAGE_BYTES
    while at + _ATTRIBUTE.size < len(message):
        length, kind = _ATTRIBUTE.unpack_from(message, at)
        if kind == _SKV6ONLY:
            return message[at + _ATTRIBUTE.size] != 0
        at += max(length, _ATTRIBUTE.size) + 3 & ~3
    return False


def _listener(message: bytes) -> tuple[str, int]:
    """inet_diag_msg: family, state, timer, retransmissions; then, big-endian, both ports and the own address."""
    port = int.from_bytes(message[4:6], "big")
    if message[0] == socket.AF_INET:
        return str(IPv4Address(message[8:12])), port
    if message[8:24] == bytes(16) and _is_ipv6_only(message):
        return IPV6_ONLY, port
    address = IPv6Address(message[8:24])
    return f"::ffff:{address.ipv4_mapped}" if address.ipv4_mapped else str(address), port
