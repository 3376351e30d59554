"""The header by which a proxy in front says whose connection it passes on: version 2 of the PROXY protocol.

Format: https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt, section 2.2. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_address

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
#: Bytes of the fixed part: signature, version and command, family, length.
HEAD = 16
#: The proxy sends 28 or 52 bytes; a longer header is none of its.
MAX_BYTES = 256
_PROXY = 0x21
#: Family and transport (TCP over IPv4, over IPv6) to the bytes of one address.
_IPV4 = 0x11
_FAMILIES = {_IPV4: 4, 0x21: 16}


@dataclass(frozen=True, slots=True)
class ProxyHeader:
    """Address and port of the client. ``size`` is the number of bytes of the header."""

    client: tuple[str, int]
    size: int


def parse(data: bytes | bytearray) -> ProxyHeader | None:
    """Parse the header at the beginning; None if more bytes are needed. Raises ``ValueError`` for anything else."""
    if bytes(data[: len(SIGNATURE)]) != SIGNATURE[: len(data)]:
        raise ValueError("no PROXY header of version 2")
    if len(data) < HEAD:
        return None
    length = int.from_bytes(data[14:16])
    width = _FAMILIES.get(data[13])
    if data[12] != _PROXY or width is None or not 2 * width + 4 <= length <= MAX_BYTES - HEAD:
        raise ValueError("a PROXY header without the client's address")
    if len(data) < HEAD + length:
        return None
    ports = HEAD + 2 * width
    address = ip_address(bytes(data[HEAD : HEAD + width]))
    return ProxyHeader((str(address), int.from_bytes(data[ports : ports + 2])), HEAD + length)
