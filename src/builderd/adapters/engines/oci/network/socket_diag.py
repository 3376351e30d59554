"""Listening TCP sockets of a process's network namespace, by sock_diag(7).

``/proc/<pid>/net/tcp`` tells the same, but takes milliseconds: for it the kernel walks through the table of all
connections, which grows with the machine's memory. Formats: include/uapi/linux/inet_diag.h and sock_diag.h.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address

from builderd.domain.sandboxes import IPV6_ONLY
from builderd.linux.syscalls import CLONE_NEWNET, setns

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
    """Return (IP, port) of listening sockets: some dozens of this port, and some dozens of any port.

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
