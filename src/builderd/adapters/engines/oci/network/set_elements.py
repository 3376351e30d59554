"""Elements of the firewall's sets, added and deleted one address at a time without an ``nft`` process.

Asked of the kernel by nf_tables' netlink. Formats: include/uapi/linux/netfilter/nfnetlink.h and nf_tables.h.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Mapping, Sequence

from builderd.adapters.engines.oci.network.netlink import attribute

_NETLINK_NETFILTER = 12
_BATCH_BEGIN, _BATCH_END = 0x10, 0x11
_SUBSYSTEM = 10
_NEW_ELEMENT, _DELETE_ELEMENT = _SUBSYSTEM << 8 | 12, _SUBSYSTEM << 8 | 14
_REQUEST, _ACK, _CREATE = 0x1, 0x4, 0x400
_ERROR, _NESTED = 2, 0x8000
_INET = 1
_LIST_TABLE, _LIST_SET, _LIST_ELEMENTS, _LIST_ELEMENT = 1, 2, 3, 1
_ELEMENT_KEY, _ELEMENT_DATA = 1, 2
_DATA_VALUE, _DATA_VERDICT = 1, 2
_VERDICT_CODE, _VERDICT_CHAIN, _GOTO = 1, 2, -4
_HEADER = struct.Struct("=IHHII")
_READ_BYTES = 1 << 16
#: Elements of one message, whose list has a length of 16 bits.
_MOST = 500
#: Timeout of an answer; the kernel answers at once.
_SECONDS = 10.0


def send_to_chains(table: str, name: str, chains: Mapping[str, str]) -> None:
    """Let a verdict map of an inet table send each address to a chain. Blocks. Raises ``OSError``.

    An address that is sent to another chain already is refused with EEXIST.
    """
    elements = [_element(ip, _goto(chain)) for ip, chain in chains.items()]
    for first in range(0, len(elements), _MOST):
        _change(_NEW_ELEMENT, _CREATE, table, name, elements[first : first + _MOST])


def delete(table: str, name: str, ip: str) -> bool:
    """Delete an address from a set of an inet table; return False when it is not in there. Blocks. Raises ``OSError``.

    False also when there is no such set.
    """
    try:
        _change(_DELETE_ELEMENT, 0, table, name, [_element(ip)])
    except FileNotFoundError:
        return False
    return True


def _change(kind: int, flags: int, table: str, name: str, elements: Sequence[bytes]) -> None:
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER) as kernel:
        kernel.settimeout(_SECONDS)
        kernel.send(make_batch(kind, flags, table, name, elements))
        # One answer: an error of the batch as a whole, or that of its one message.
        code = -int(struct.unpack_from("=i", kernel.recv(_READ_BYTES), _HEADER.size)[0])
    if code:
        raise OSError(code, os.strerror(code), f"{table} {name}")


def make_batch(kind: int, flags: int, table: str, name: str, elements: Sequence[bytes]) -> bytes:
    """Build a transaction of one message. Pure."""
    listed = b"".join(attribute(_LIST_ELEMENT | _NESTED, element) for element in elements)
    body = _text(_LIST_TABLE, table) + _text(_LIST_SET, name) + attribute(_LIST_ELEMENTS | _NESTED, listed)
    message = _message(kind, _REQUEST | _ACK | flags, _INET, 0, body)
    begin, end = (_message(edge, _REQUEST, 0, _SUBSYSTEM) for edge in (_BATCH_BEGIN, _BATCH_END))
    return begin + message + end


def _element(ip: str, data: bytes = b"") -> bytes:
    return attribute(_ELEMENT_KEY | _NESTED, attribute(_DATA_VALUE, socket.inet_aton(ip))) + data


def _goto(chain: str) -> bytes:
    verdict = attribute(_VERDICT_CODE, struct.pack(">i", _GOTO)) + _text(_VERDICT_CHAIN, chain)
    return attribute(_ELEMENT_DATA | _NESTED, attribute(_DATA_VERDICT | _NESTED, verdict))


def _text(kind: int, text: str) -> bytes:
    return attribute(kind, text.encode() + b"\0")


def _message(kind: int, flags: int, family: int, resource: int, body: bytes = b"") -> bytes:
    """Return a message with its header and struct nfgenmsg, whose resource is in the network's order."""
    about = struct.pack("=BB", family, 0) + struct.pack(">H", resource)
    return _HEADER.pack(_HEADER.size + len(about) + len(body), kind, flags, 0, 0) + about + body
