"""Tracked flows of one address are deleted, and no others."""

from __future__ import annotations

import errno
import os
import socket
import struct
import subprocess
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest

from builderd.engine.oci.network import conntrack
from builderd.engine.oci.network.conntrack import attribute, forget, forget_others
from builderd.linux.syscalls import CLONE_NEWNET, setns

pytestmark = pytest.mark.root

MINE, OTHER, PEER = "10.64.8.2", "10.64.8.3", "203.0.113.10"
NESTED = 0x8000


@pytest.fixture(autouse=True)
def network() -> Iterator[None]:
    """A network of its own, in which nothing is tracked."""
    words = ["unshare", "--net", "sh", "-c", "echo ready; exec cat"]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout
        process.stdout.readline()
        own = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        with Path(f"/proc/{process.pid}/ns/net").open() as inside:
            setns(inside.fileno(), CLONE_NEWNET)
        yield
        setns(own, CLONE_NEWNET)
        os.close(own)


def end(number: int, source: str, port: int, target: str, target_port: int) -> bytes:
    addresses = attribute(1, socket.inet_aton(source)) + attribute(2, socket.inet_aton(target))
    ports = attribute(2, struct.pack(">H", port)) + attribute(3, struct.pack(">H", target_port))
    protocol = attribute(1, bytes([socket.IPPROTO_UDP])) + ports
    return attribute(number | NESTED, attribute(1 | NESTED, addresses) + attribute(2 | NESTED, protocol))


def track(*flows: tuple[str, str, int], zone: int = 0) -> None:
    """Have the kernel track these: from, to, by which port."""
    made = []
    for source, target, port in flows:
        body = struct.pack("=BBH", socket.AF_INET, 0, 0)
        body += end(1, source, port, target, 53) + end(2, target, 53, source, port)
        body += attribute(7, struct.pack(">I", 600)) + (attribute(18, struct.pack(">H", zone)) if zone else b"")
        made.append(struct.pack("=IHHII", 16 + len(body), 0x100, 0x1 | 0x200 | 0x400, 0, 0) + body)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12) as kernel:
        for begin in range(0, len(made), 500):
            kernel.send(b"".join(made[begin : begin + 500]))
        with pytest.raises(BlockingIOError):
            raise OSError(kernel.recv(1 << 16, socket.MSG_DONTWAIT))


def tracked() -> list[str]:
    """Return the source of each tracked flow."""
    flows = Path("/proc/thread-self/net/nf_conntrack").read_text().splitlines()
    return [next(word for word in flow.split() if word.startswith("src="))[4:] for flow in flows]


def test_nothing_but_the_flows_of_the_address_is_forgotten() -> None:
    forget(MINE)
    track((MINE, PEER, 1000), (MINE, PEER, 1001), (OTHER, PEER, 1000), ("10.64.8.1", MINE, 1000), (PEER, OTHER, 1000))
    forget(MINE)
    assert sorted(tracked()) == [OTHER, PEER]
    forget(MINE)
    assert sorted(tracked()) == [OTHER, PEER]


def test_flows_of_a_subnet_are_deleted_except_known_addresses() -> None:
    track((MINE, PEER, 1000), (OTHER, PEER, 1000), ("10.64.8.1", OTHER, 1), ("10.64.8.1", MINE, 2))
    track(("10.64.15.255", PEER, 1), ("10.64.16.0", PEER, 2), ("10.64.7.255", PEER, 3), (PEER, "192.0.2.1", 4))
    assert forget_others(IPv4Network("10.64.8.0/21"), ["10.64.8.1", OTHER]) == 3
    assert sorted(tracked()) == ["10.64.16.0", "10.64.7.255", "10.64.8.1", OTHER, PEER]


def test_flows_in_a_zone_are_forgotten_too() -> None:
    track((MINE, PEER, 1000), (OTHER, PEER, 1000), zone=7)
    forget(MINE)
    assert tracked() == [OTHER]


def test_more_than_is_deleted_at_once_is_forgotten() -> None:
    track(*((MINE, PEER, 1000 + number) for number in range(5000)))
    forget(MINE)
    assert tracked() == []


def test_a_full_table_hides_nothing() -> None:
    first = int(IPv4Address("10.64.9.0"))
    track(*((str(IPv4Address(first + number // 60_000)), PEER, 1000 + number % 60_000) for number in range(100_000)))
    track((MINE, PEER, 1000), (PEER, MINE, 1000))
    forget(MINE)
    # A long list is read in pieces, while the kernel moves what is in it: it counts them by itself.
    assert int(Path("/proc/sys/net/netfilter/nf_conntrack_count").read_text()) == 100_000


def test_ended_flow_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    track((MINE, PEER, 1000), (MINE, PEER, 1001))
    delete = conntrack._delete

    def twice(kernel: socket.socket, deletions: list[bytes]) -> None:
        delete(kernel, deletions)
        delete(kernel, deletions)

    monkeypatch.setattr(conntrack, "_delete", twice)
    forget(MINE)
    assert tracked() == []


def test_netlink_errors_raise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conntrack, "_GET", 0xFE01)
    with pytest.raises(OSError, match="ctnetlink") as refused:
        forget(MINE)
    assert refused.value.errno == errno.EINVAL
