"""Messages to the kernel's connection tracking, in its own layout (linux/netfilter/nfnetlink_conntrack.h)."""

from __future__ import annotations

import sys

import pytest

from builderd.engine.oci.network.conntrack import make_deletion, make_question

pytestmark = pytest.mark.skipif(sys.byteorder != "little", reason="written out as on a little-endian machine")

MINE, PEER = bytes([10, 64, 8, 2]), bytes([203, 0, 113, 10])
#: A tuple: the addresses, and UDP from port 1000 to 53.
FIRST = bytes.fromhex("1400 0180 0800 0100 0a400802 0800 0200 cb00710a 1c00 0280 05000100 11000000 06000200 03e80000 ")
FIRST += bytes.fromhex("06000300 00350000")
ABOUT = bytes.fromhex("02 00 0000")


def told(first: bytes, *more: str) -> bytes:
    return ABOUT + bytes.fromhex("3400 0180") + first + bytes.fromhex("".join(more))


@pytest.mark.parametrize(("end", "kind"), [(1, "0100"), (2, "0200")])
def test_flows_are_asked_for_by_either_end_of_their_first_packet(end: int, kind: str) -> None:
    message = make_question(MINE, end)
    assert message[:16] == bytes.fromhex("30000000 0101 0103 00000000 00000000")
    first = bytes.fromhex(f"1000 0180 0c00 0180 0800 {kind}") + MINE
    only = bytes.fromhex(f"0c00 1980 0800 0100 {kind}0000")
    assert message[16:] == ABOUT + first + only


def test_a_flow_is_deleted_by_its_first_packet_and_its_number() -> None:
    status, number, zone = "0800 0300 0000000e", "0800 0c00 deadbeef", "0600 1200 0007 0000"
    assert make_deletion(told(FIRST, status, number, zone), MINE.__eq__) == (
        bytes.fromhex("5800 0000 0201 0500 00000000 00000000")
        + told(FIRST)
        + bytes.fromhex("0800 0c00 deadbeef 0600 1200 0007 0000")
    )
    deletion = make_deletion(told(FIRST, status, number), PEER.__eq__)
    assert deletion is not None
    assert deletion[16:] == told(FIRST, number)


@pytest.mark.parametrize(
    "flow",
    [
        told(FIRST.replace(MINE, PEER)),
        told(FIRST.replace(MINE, PEER), "0800 0800 0a400802"),  # the address elsewhere, as a mark
        ABOUT + bytes.fromhex("0400 0180"),
    ],
)
def test_a_flow_of_others_is_not_deleted(flow: bytes) -> None:
    assert make_deletion(flow, MINE.__eq__) is None
