"""Removal of tracked connections by address: the firewall lets packets of a tracked flow in to its address.

Asked of the kernel by ctnetlink. Formats: include/uapi/linux/netfilter/nfnetlink.h and nfnetlink_conntrack.h; the flags
of a filter: net/netfilter/nf_internals.h. Flows are listed and deleted one by one.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Callable, Collection, Iterator, Sequence
from ipaddress import IPv4Network

_NETLINK_NETFILTER = 12
_GET, _DELETE = 0x101, 0x102
_REQUEST_ACK, _REQUEST_DUMP = 0x1 | 0x4, 0x1 | 0x300
_ERROR, _DONE = 2, 3
_HEADER = struct.Struct("=IHHII")
#: struct nfgenmsg: family, version, and no resource.
_ABOUT = struct.pack("=BBH", socket.AF_INET, 0, 0)
_ATTRIBUTE = struct.Struct("=HH")
_NESTED, _KIND = 0x8000, 0x3FFF

_CTA_TUPLE_ORIG, _CTA_ID, _CTA_ZONE, _CTA_FILTER = 1, 12, 18, 25
_CTA_TUPLE_IP = 1
_CTA_FILTER_ORIG_FLAGS = 1
#: Ends of a flow's first packet, CTA_IP_V4_SRC and CTA_IP_V4_DST, and the flag by which flows are queried by each.
_ENDS = {1: 1 << 0, 2: 1 << 1}

_READ_BYTES = 1 << 16
#: Deletions in one send: their answers must fit into the socket's receive buffer.
_BATCH = 64
#: Timeout of an answer; the kernel answers at once.
_SECONDS = 10.0


def forget(ip: str) -> None:
    """Delete the flows from and to this address. Blocks. Raises ``OSError``, also where the kernel cannot."""
    address = socket.inet_aton(ip)
    _forget([_question(address, end) for end in _ENDS], address, lambda one: one == address)


def forget_others(subnet: IPv4Network, known: Collection[str]) -> int:
    """Delete the flows of the subnet's addresses (a /16 or smaller) but the ``known``; return their number."""
    first, last = subnet.network_address.packed, subnet.broadcast_address.packed
    spared = {socket.inet_aton(ip) for ip in known}
    everything = _message(_GET, _REQUEST_DUMP, b"")
    return _forget([everything], first[:2], lambda one: first <= one <= last and one not in spared)


def _forget(questions: Sequence[bytes], sign: bytes, is_meant: Callable[[bytes], bool]) -> int:
    """Delete the flows that ``is_meant`` accepts; ``sign`` is a byte string that occurs in each of their addresses."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER) as kernel:
        kernel.settimeout(_SECONDS)
        flows = (flow for question in questions for flow in _ask(kernel, question, sign))
        deletions = list({deletion for flow in flows if (deletion := make_deletion(flow, is_meant))})
        for begin in range(0, len(deletions), _BATCH):
            _delete(kernel, deletions[begin : begin + _BATCH])
    return len(deletions)


def _ask(kernel: socket.socket, question: bytes, sign: bytes) -> Iterator[bytes]:
    """Yield the flow messages that contain ``sign``; others, there may be 100,000s, are not parsed."""
    kernel.send(question)
    while True:
        for kind, body in _messages(kernel.recv(_READ_BYTES)):
            if kind == _DONE:
                return
            if kind == _ERROR:
                raise _fault(_code(body))
            if sign in body:
                yield body


def _delete(kernel: socket.socket, deletions: Sequence[bytes]) -> None:
    kernel.send(b"".join(deletions))
    for _ in deletions:
        ((kind, body),) = _messages(kernel.recv(_READ_BYTES))
        code = _code(body) if kind == _ERROR else 0
        if code not in (0, errno.ENOENT):
            raise _fault(code)


def _question(address: bytes, end: int) -> bytes:
    """Build the query for flows with the address at one end: a list of 100,000 would take four times the CPU."""
    addresses = attribute(_CTA_TUPLE_IP | _NESTED, attribute(end, address))
    flags = attribute(_CTA_FILTER_ORIG_FLAGS, struct.pack("=I", _ENDS[end]))
    body = attribute(_CTA_TUPLE_ORIG | _NESTED, addresses) + attribute(_CTA_FILTER | _NESTED, flags)
    return _message(_GET, _REQUEST_DUMP, body)


def make_deletion(report: bytes, is_meant: Callable[[bytes], bool]) -> bytes | None:
    """Build the deletion of a reported flow; None when no address at its ends is meant. Pure.

    The flow is named by its first packet and its id: a deletion without a name would delete all flows.
    """
    flow = _attributes(report[len(_ABOUT) :])
    first = flow[_CTA_TUPLE_ORIG]
    addresses = _attributes(_attributes(first).get(_CTA_TUPLE_IP, b""))
    if not any(is_meant(addresses[end]) for end in _ENDS if end in addresses):
        return None
    body = attribute(_CTA_TUPLE_ORIG | _NESTED, first)
    body += b"".join(attribute(kind, flow[kind]) for kind in (_CTA_ID, _CTA_ZONE) if kind in flow)
    return _message(_DELETE, _REQUEST_ACK, body)


def attribute(kind: int, value: bytes) -> bytes:
    """Pack a struct nlattr, padded."""
    length = _ATTRIBUTE.size + len(value)
    return _ATTRIBUTE.pack(length, kind) + value + bytes(-length % 4)


def _message(kind: int, flags: int, body: bytes) -> bytes:
    return _HEADER.pack(_HEADER.size + len(_ABOUT) + len(body), kind, flags, 0, 0) + _ABOUT + body


def _messages(answer: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at < len(answer):
        length, kind, *_ = _HEADER.unpack_from(answer, at)
        yield kind, answer[at + _HEADER.size : at + length]
        at += length + 3 & ~3


def _attributes(data: bytes) -> dict[int, bytes]:
    found, at = {}, 0
    while at < len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, at)
        found[kind & _KIND] = data[at + _ATTRIBUTE.size : at + length]
        at += length + 3 & ~3
    return found


def _code(body: bytes) -> int:
    return -int(struct.unpack_from("=i", body)[0])


def _fault(code: int) -> OSError:
    return OSError(code, os.strerror(code), "ctnetlink")
