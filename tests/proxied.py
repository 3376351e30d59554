"""The header by which the previews' proxy names its client (PROXY protocol, version 1)."""

from __future__ import annotations


def build(address: str, port: int = 1) -> bytes:
    """Return the header for a client with an IPv4 address."""
    return f"PROXY TCP4 {address} {address} {port} {port}\r\n".encode()
