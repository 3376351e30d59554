"""The PROXY header, version 2: built as its specification says, parsed in pieces, and attacked."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from builderd.operations.proxy_header import MAX_BYTES, SIGNATURE, parse


def header(address: str, port: int = 4711, *, command: int = 0x21, more: bytes = b"") -> bytes:
    packed = ip_address(address).packed
    body = packed + bytes(len(packed)) + port.to_bytes(2) + (443).to_bytes(2) + more
    family = 0x11 if len(packed) == 4 else 0x21
    return SIGNATURE + bytes((command, family)) + len(body).to_bytes(2) + body


@pytest.mark.parametrize("address", ["203.0.113.7", "2001:db8::7"])
def test_the_clients_address_is_read_once_all_of_it_is_there(address: str) -> None:
    data = header(address, more=b"\x03\x00\x04abcd")
    for length in range(len(data)):
        assert parse(data[:length]) is None
    found = parse(data + b"GET / HTTP/1.1\r\n")
    assert found is not None
    assert (found.client, found.size) == ((address, 4711), len(data))


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n",
        b"PROXY TCP4 203.0.113.7 192.0.2.1 4711 443\r\n",
        header("203.0.113.7", command=0x20),
        header("203.0.113.7", command=0x11),
        SIGNATURE + b"\x21\x31" + (216).to_bytes(2) + bytes(216),
        SIGNATURE + b"\x21\x11" + (11).to_bytes(2) + bytes(11),
        SIGNATURE + b"\x21\x11" + (MAX_BYTES).to_bytes(2) + bytes(MAX_BYTES),
    ],
)
def test_everything_else_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="PROXY header"):
        parse(data)
