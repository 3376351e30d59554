"""The header by which the previews' proxy names its client (PROXY protocol, version 2)."""

from __future__ import annotations

from ipaddress import ip_address

from builderd.operations.proxy_header import SIGNATURE


def build(address: str, port: int = 1) -> bytes:
    """Return the header for a client with an IPv4 address."""
    body = ip_address(address).packed * 2 + port.to_bytes(2) * 2
    return SIGNATURE + b"\x21\x11" + len(body).to_bytes(2) + body
